-- A row is an optimiser step. step counts over all stages, stage_step within one; tokens are target
-- tokens; terms maps each term of the objective to its mean over them.
CREATE VIEW train_log AS
SELECT stage, step, stage_step, epoch, loss, terms, lr, tokens, tokens_per_second
FROM raw.train_log;
