-- Stages as they were trained.
SELECT
    stage,
    max(stage_step) AS last_step,
    count(*) AS steps,
    arg_min(loss, stage_step) AS first_loss,
    arg_max(loss, stage_step) AS last_loss,
    sum(tokens)::BIGINT AS tokens
FROM train_log
GROUP BY stage
ORDER BY min(step)
