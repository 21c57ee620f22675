-- The samples that each row of `offered` speaks of: by sample_id, else by the user's id (hashed as
-- samples hash it), else by the source text: equal sources all get it. No sample: a row of NULLs.
-- place orders the sources to learn from as the run does; it is NULL for held-out ones.
CREATE TEMP TABLE addressed AS
WITH known AS (
    SELECT
        sample_id, source, split, prompt_hash,
        CASE split WHEN 'train' THEN "row" WHEN 'unlabeled' THEN (1::BIGINT << 40) + "row" END AS place
    FROM raw.samples
),
named AS (
    SELECT "row", source, coalesce(sample_id, left(sha256(key), 20)) AS sample_id FROM offered
)
SELECT n."row", k.sample_id, k.split, k.prompt_hash, k.place, true AS by_id, k.source AS known_source, n.source
FROM named AS n
LEFT JOIN known AS k ON k.sample_id = n.sample_id
WHERE n.sample_id IS NOT NULL
UNION ALL
SELECT n."row", k.sample_id, k.split, k.prompt_hash, k.place, false, k.source, n.source
FROM named AS n
LEFT JOIN known AS k ON k.source = n.source
WHERE n.sample_id IS NULL AND n.source IS NOT NULL
