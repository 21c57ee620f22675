-- All hypotheses of one source, with what was measured and decided.
SELECT
    rank, score, c.mean_logprob, c.n_tokens, finish_reason, text, c.error,
    kept, selected, reasons, g AS signals
FROM candidates c
LEFT JOIN signals g USING (sample_id, rank)
LEFT JOIN verdicts v USING (sample_id, rank)
WHERE sample_id = $sample_id
ORDER BY rank
