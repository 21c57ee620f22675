-- What the target does not keep of its source: protected spans, counted as often as the source has
-- them, and entries of the glossary. `glossary` holds source and target terms; without one (variable
-- 'glossary' is false) there is nothing to miss.
-- An entry's places are found by its first word, or its first two: a hash join, however long the
-- glossary. A place inside a longer entry's place is that entry's: "dog" is not asked for in "hot dog".
WITH terms AS (
    SELECT
        array_to_string(words(source), ' ') AS term,
        list(DISTINCT array_to_string(words(target), ' ')) AS alternatives,
        any_value(len(words(source))) AS n,
        any_value(lower(array_to_string(words(source)[:2], ' '))) AS head
    FROM glossary
    GROUP BY term
),
sources AS (
    SELECT sample_id, words(source) AS words
    FROM samples
    WHERE getvariable('glossary') AND split IN ('train', 'unlabeled')
),
heads AS (
    SELECT *, unnest([words[i], words[i] || ' ' || words[i + 1]]) AS head
    FROM (SELECT *, unnest(range(1, len(words) + 1)) AS i FROM sources)
),
places AS (
    SELECT h.sample_id, h.i, t.n, t.term, t.alternatives
    FROM heads h
    JOIN terms t ON t.head = lower(h.head)
    WHERE stands_in(t.term, ' ' || array_to_string(h.words[h.i : h.i + t.n - 1], ' ') || ' ')
),
asked AS (
    SELECT sample_id, list(alternatives) AS asked
    FROM (
        SELECT DISTINCT sample_id, term, alternatives
        FROM places p
        WHERE NOT EXISTS (
            FROM places longer
            WHERE longer.sample_id = p.sample_id AND longer.n > p.n
                AND longer.i <= p.i AND longer.i + longer.n >= p.i + p.n
        )
    )
    GROUP BY sample_id
),
marked AS (
    SELECT sample_id, protected_spans(source) AS spans
    FROM samples
    WHERE split IN ('train', 'unlabeled') AND len(spans) > 0
),
pairs AS (
    SELECT
        c.sample_id, c.rank, c.text IS NULL AS failed, m.spans, a.asked,
        CASE WHEN m.spans IS NOT NULL THEN protected_spans(c.text) END AS kept,
        CASE WHEN a.asked IS NOT NULL THEN ' ' || array_to_string(words(c.text), ' ') || ' ' END AS spaced
    FROM candidates c
    LEFT JOIN marked m USING (sample_id)
    LEFT JOIN asked a USING (sample_id)
)
SELECT
    sample_id,
    rank,
    CASE WHEN NOT failed THEN CASE WHEN spans IS NULL THEN 0 ELSE missing(spans, kept) END END AS placeholders_missing,
    CASE WHEN NOT failed AND getvariable('glossary') THEN coalesce(len(list_filter(
        asked,
        lambda terms: len(list_filter(terms, lambda term: stands_in(term, spaced))) = 0
    )), 0) END AS glossary_missing
FROM pairs
