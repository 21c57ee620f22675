-- Every candidate with the texts that a library measures; those of a sample stand together.
SELECT sample_id, c.rank, s.source, c.text, g.target AS gold
FROM candidates c
JOIN samples s USING (sample_id)
LEFT JOIN gold g USING (sample_id)
ORDER BY sample_id, c.rank
