-- An optimiser step, or the mean of so many that a stage has at most 120 points.
WITH numbered AS (
    SELECT
        *, row_number() OVER (PARTITION BY stage ORDER BY stage_step) - 1 AS place,
        count(*) OVER (PARTITION BY stage) AS steps
    FROM train_log
)
SELECT
    stage, max(step) AS step, max(stage_step) AS stage_step, max(epoch) AS epoch,
    avg(loss) AS loss, avg(lr) AS lr,
    sum(tokens) / sum(tokens / nullif(tokens_per_second, 0)) AS tokens_per_second
FROM numbered
GROUP BY stage, place // ceil(steps / 120)::BIGINT
ORDER BY step
