-- Rows that speak of no source to learn from, of another than they say, or of one that has targets.
WITH told AS (
    SELECT
        "row",
        any_value(source) AS source,
        any_value(split) AS split,
        count(sample_id) AS found,
        count(place) AS usable,
        count(DISTINCT prompt_hash) FILTER (place IS NOT NULL) AS prompts,
        bool_or(by_id AND known_source <> source) AS differs
    FROM addressed
    GROUP BY "row"
),
taken AS (
    SELECT DISTINCT a."row", a.sample_id
    FROM addressed AS a
    SEMI JOIN raw.candidates AS c ON a.sample_id = c.sample_id AND a.prompt_hash = c.prompt_hash
    WHERE a.place IS NOT NULL
),
faults AS (
    SELECT "row", CASE
        WHEN found = 0 THEN fault(source, NULL, 'is no sample of this run: leave it out, or import into the run it was made for')
        WHEN usable = 0 THEN fault(source, NULL, 'is held out (' || split || '): candidates are for train and unlabeled sources')
        WHEN differs THEN fault(source, NULL, 'is not the source that this id has in the run: are the rows a line off?')
        WHEN prompts > 1 THEN fault(source, NULL, 'several rows of the run have this source, with different prompts: give sample_id')
    END AS fault
    FROM told
    UNION ALL
    SELECT "row", fault(sample_id, NULL, 'has a candidate already: leave the row out, or import into another run')
    FROM taken
)
SELECT "row", fault.word, fault.number, fault.remedy
FROM faults
WHERE fault IS NOT NULL
ORDER BY "row"
LIMIT 1
