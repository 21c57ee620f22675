-- A row is a selected target.
CREATE VIEW pseudolabels AS
SELECT
    sample_id, rank, s.source, c.text AS target, c.token_ids, c.score, c.mean_logprob,
    c.finish_reason
FROM verdicts v
JOIN candidates c USING (sample_id, rank)
JOIN samples s USING (sample_id)
WHERE v.selected;
