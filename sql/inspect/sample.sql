-- One source. Training gold that the student may not see stays out of sight.
SELECT
    sample_id, split, source,
    CASE WHEN gold_visible OR split IN ('validation', 'test') THEN gold END AS gold,
    prompt, n_prompt_tokens, meta
FROM samples
WHERE sample_id = $sample_id
