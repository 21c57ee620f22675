-- A row is a labelled training pair that the student may see.
CREATE VIEW gold AS
SELECT sample_id, source, gold AS target
FROM samples
WHERE split = 'train' AND gold_visible AND gold IS NOT NULL;
