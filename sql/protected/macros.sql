-- Spans that a target keeps as they are. Variable 'protect' holds the user's patterns, each with a bar
-- behind it; what a pattern takes, those after it do not see. After Translate Toolkit's pofilter: the
-- checks printf (C, Python, boost, Objective-C), pythonbraceformat, variables, and xmltags with its
-- attributes that may change; the other braces are Mustache's, Jinja's, ERB's, the shells' and Ruby's.
-- %% is a percent sign, and so is one behind a digit (20%off): taken, and dropped. Of tags, blanks and
-- a slash before the end are dropped. Entities that only write a character (&amp;, &nbsp;, &eacute;)
-- are left out: they stand in text that nobody decoded, and a target writes the character.
CREATE OR REPLACE TEMP MACRO protected_spans(text) AS list_filter(
    list_transform(
        regexp_extract_all(
            text,
            getvariable('protect')
            || '\{\{[^{}\n]{1,80}\}\}|\{%[^{}\n]{1,200}%\}|<%[^<>\n]{1,200}%>|[$#%]\{[^{}\n]{1,80}\}'
            || '|\{[\w.\[\]-]{0,80}(?:![rsa])?(?::[^{}\s]{0,40})?\}'
            || '|[0-9]%|%%|%[0-9]+%|%[A-Z_][A-Z0-9_]*%'
            || '|%(?:[0-9]+\$|\(\w+\))?[+#-]*(?:[0-9]+)?(?:\.[0-9]+)?(?:hh|h|ll|l)?[A-Za-z@]|%[0-9]{1,2}'
            || '|</?[A-Za-z][^<>]*>'
            || '|&[A-Za-z][A-Za-z0-9.]{1,63};'
            || '|\[\[[A-Z0-9_]{1,80}\]\]'
        ),
        lambda span: CASE WHEN starts_with(span, '<') THEN regexp_replace(
            regexp_replace(
                span, '\s+(?:alt|title|dir|lang|xml:lang)\s*=\s*(?:"[^"]*"|''[^'']*'')', '', 'g'
            ),
            '\s*/?>$', '>'
        ) ELSE span END
    ),
    lambda span: NOT regexp_full_match(
        span,
        '[0-9]%|%%|&(?:amp|lt|gt|quot|apos|nbsp|e[nm]sp|thinsp|shy|[lr]s?aquo|[lrbs][sd]?quo|hellip|[nm]dash'
        || '|copy|reg|trade|deg|euro|[a-zA-Z](?:acute|grave|circ|uml|tilde|cedil|ring|caron|slash)|(?:ae|AE|oe|OE|sz)lig);'
    )
);

-- How many of the wanted are not found, each as often as it is wanted.
CREATE OR REPLACE TEMP MACRO missing(wanted, found) AS coalesce(list_sum(list_transform(
    list_distinct(wanted),
    lambda span: greatest(
        0,
        len(list_filter(wanted, lambda other: other = span))
        - len(list_filter(found, lambda other: other = span))
    )
)), 0);

-- Words are runs of letters, marks, digits and underscores; any other sign stands alone, and so does
-- a letter of a script that leaves no blanks between words: a term is found inside such a text.
CREATE OR REPLACE TEMP MACRO words(text) AS regexp_extract_all(
    nfc_normalize(replace(text, '’', '''')),
    '(?:[^\P{L}\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]|[\p{M}\p{N}_])+'
    || '|[^\s\pZ]'
);

-- Whether a term stands in words set apart by blanks, with a blank at both ends. A term in small
-- letters stands there in any case, one with a capital only as it is written.
CREATE OR REPLACE TEMP MACRO stands_in(term, spaced) AS
    contains(CASE WHEN lower(term) = term THEN lower(spaced) ELSE spaced END, ' ' || term || ' ');
