-- The loss and its terms, where there are several, at the points of training.sql.
WITH numbered AS (
    SELECT
        *, row_number() OVER (PARTITION BY stage ORDER BY stage_step) - 1 AS place,
        count(*) OVER (PARTITION BY stage) AS steps
    FROM train_log
),
parts AS (
    SELECT stage, step, stage_step, place, steps, unnest(list_concat(
        [{'key': 'loss', 'value': loss}],
        CASE WHEN cardinality(terms) > 1 THEN map_entries(terms) ELSE [] END
    )) AS part
    FROM numbered
)
SELECT stage, max(stage_step) AS stage_step, part.key AS term, avg(part.value) AS value
FROM parts
GROUP BY stage, place // ceil(steps / 120)::BIGINT, part.key
ORDER BY min(step), term <> 'loss', term
