-- Candidates without distributions, with the prompt as the teacher saw it before the answer: the
-- reasoning that was cut off stands in front. `portion` holds the candidates of some shards, and
-- `part` says of which.
SELECT
    c.part, 'candidate' AS origin, c.rank, c.sample_id, c.prompt_hash,
    list_concat(s.prompt_ids, coalesce(c.reasoning_ids, [])) AS prompt_ids,
    c.token_ids AS target_ids, NULL::VARCHAR AS target, c.sum_logprob
FROM portion AS c
JOIN raw.samples AS s ON c.sample_id = s.sample_id AND c.prompt_hash = s.prompt_hash
ANTI JOIN raw.logits AS l
    ON c.sample_id = l.sample_id AND c.prompt_hash = l.prompt_hash AND c.rank = l.rank
    AND l.origin = 'candidate'
WHERE s.split IN ('train', 'unlabeled') AND len(c.token_ids) > 0
ORDER BY c.part, c.sample_id, c.rank
