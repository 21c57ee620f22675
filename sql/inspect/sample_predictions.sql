-- What the evaluated systems made of one source.
SELECT system, stage, text
FROM predictions
WHERE sample_id = $sample_id
ORDER BY system DESC, stage
