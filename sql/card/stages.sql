-- Stages as they were trained.
SELECT
    stage,
    count(*) AS steps,
    sum(tokens) AS target_tokens,
    arg_min(loss, stage_step) AS first_loss,
    arg_max(loss, stage_step) AS last_loss
FROM train_log
GROUP BY stage
ORDER BY min(step)
