-- The id of every usable row, and the seeded rank that decides whether the student sees its gold.
-- A row is identified by the user's key, else by its whole conversation, else by its source. Equal keys are told apart by an ordinal over splits, then gold, then file order.
-- The pilot takes $limit training sources (0: all), and no more of the other splits, by seeded hash.
CREATE TABLE identified AS
WITH told AS (
    SELECT split, split_order, row, gold, key, coalesce(conversation, source) AS content FROM raw
),
usable AS (
    SELECT split, split_order, row, gold, coalesce(key, content) AS key
    FROM told
    WHERE NOT ($drop_overlap AND split IN ('train', 'unlabeled') AND content IN (SELECT content FROM told WHERE split = 'test'))
),
counted AS (
    SELECT
        split, split_order, row, gold IS NOT NULL AS has_gold, key,
        row_number() OVER (PARTITION BY md5_number(key) ORDER BY split_order, gold NULLS LAST, row) - 1 AS ordinal
    FROM usable
),
named AS (
    SELECT
        split, split_order, row, has_gold,
        left(sha256(CASE WHEN ordinal = 0 THEN key ELSE sha256(key) || ordinal END), 20) AS sample_id
    FROM counted
),
piloted AS (
    SELECT *
    FROM named
    QUALIFY $limit = 0 OR $limit >= row_number() OVER (
        PARTITION BY CASE WHEN split IN ('train', 'unlabeled') THEN 'teach' ELSE split END
        ORDER BY md5($seed || 'pilot' || sample_id)
    )
)
SELECT
    split, row, sample_id,
    CASE WHEN split = 'train' AND has_gold THEN row_number() OVER (
        PARTITION BY split, has_gold ORDER BY sha256($seed || sample_id)
    ) END AS gold_rank
FROM piloted
