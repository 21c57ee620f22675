-- A row is a target's distributions, flat: n_tokens x k where every position holds k entries, else
-- k is NULL and widths says how many each position holds. Log-probabilities are natural, at T = 1.
-- A stored row of no tokens says that the target could not be scored. Of precision compact is what
-- has codes: up to 2048 a probability in 2048ths, above it the power 2^(2048 - code); each is that
-- of a run of entries.
CREATE VIEW logits AS
SELECT
    sample_id, origin, rank, n_tokens, k, widths, token_ids, token_logprobs, topk_ids,
    COALESCE(topk_logprobs, flatten(list_transform(
        list_transform(topk_codes, lambda code:
            CASE WHEN code <= 2048 THEN ln(code / 2048) ELSE (2048 - code::INTEGER) * ln(2) END
        )::FLOAT[],
        lambda value, run: list_resize([value], topk_runs[run], value)
    ))) AS topk_logprobs,
    tail_logprob, counts, draws, prompt_hash
FROM raw.logits
SEMI JOIN (
    SELECT sample_id, prompt_hash FROM raw.samples WHERE split IN ('train', 'unlabeled')
) USING (sample_id, prompt_hash)
WHERE n_tokens > 0;
