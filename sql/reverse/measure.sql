-- The score of each candidate's pair: `scored` holds the pairs.
SELECT c.sample_id, c.rank, r.reverse_logprob
FROM candidates c
JOIN samples s USING (sample_id)
LEFT JOIN scored r ON r.pair = md5(concat(length(s.source), ' ', s.source, c.text))
