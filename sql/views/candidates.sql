-- A row is a teacher hypothesis for a source to learn from. The prompt's hash is part of the join:
-- a hypothesis of a prompt that has since changed never shows.
CREATE VIEW candidates AS
SELECT
    sample_id, rank, score, text, token_ids, n_tokens, sum_logprob, mean_logprob,
    finish_reason, error, ordinal, seed, duplicate_of, control_tokens, reasoning, reasoning_ids,
    prompt_hash
FROM raw.candidates
SEMI JOIN (
    SELECT sample_id, prompt_hash FROM raw.samples WHERE split IN ('train', 'unlabeled')
) USING (sample_id, prompt_hash);
