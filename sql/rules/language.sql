-- Source and target are in the languages they should be in: ISO 639 codes, as py3langid names them.
-- $source = manifest.languages.0
-- $target = manifest.languages.1
language_source = $source AND language_target = $target
