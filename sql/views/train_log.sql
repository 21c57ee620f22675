-- A row is an optimiser step. step counts over all stages, stage_step within one; tokens are target
-- tokens; terms maps each term of the objective to its mean over them; grad_norm is the gradient's
-- norm before clipping, NULL where DeepSpeed does not tell; validation is the score of the model that
-- the step left behind, NULL where none was scored.
CREATE VIEW train_log AS
SELECT
    stage, step, stage_step, epoch, loss, terms, lr, tokens, tokens_per_second, seconds, grad_norm,
    validation
FROM raw.train_log;
