-- A row is a candidate that was not kept.
CREATE VIEW rejects AS
SELECT sample_id, rank, c.text, v.reasons
FROM verdicts v
JOIN candidates c USING (sample_id, rank)
WHERE NOT v.kept;
