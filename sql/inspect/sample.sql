-- One source, by its id or the only beginning of an id that is the same. Training gold that the
-- student may not see stays out of sight.
SELECT
    sample_id, split, source,
    CASE WHEN gold_visible OR split IN ('validation', 'test') THEN gold END AS gold,
    prompt, n_prompt_tokens, meta
FROM samples
WHERE starts_with(sample_id, $sample_id)
QUALIFY sample_id = $sample_id OR count(*) OVER () = 1
