-- What every system made of the sources of a split that have gold, in the order of ids.
SELECT system, stage, split, sample_id, source, gold, coalesce(text, '') AS text
FROM predictions
JOIN samples USING (sample_id, split)
WHERE gold IS NOT NULL
ORDER BY system, stage, split, sample_id
