-- What the rows' other fields are called.
SELECT DISTINCT unnest(json_keys(meta)) AS field
FROM raw.samples
WHERE split IN ('train', 'unlabeled')
