-- Targets in words, for the sources that have one: `given` holds sample_id and target.
SELECT
    NULL::INTEGER AS part, $origin AS origin, 0 AS rank, s.sample_id, s.prompt_hash,
    s.prompt_ids, NULL::INTEGER[] AS target_ids, g.target, NULL::DOUBLE AS sum_logprob
FROM raw.samples AS s
JOIN given AS g ON s.sample_id = g.sample_id
ANTI JOIN raw.logits AS l
    ON s.sample_id = l.sample_id AND s.prompt_hash = l.prompt_hash AND l.origin = $origin
WHERE s.split IN ('train', 'unlabeled') AND g.target IS NOT NULL
