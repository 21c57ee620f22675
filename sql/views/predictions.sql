-- A row is a decoded test or validation source.
CREATE VIEW predictions AS
SELECT system, stage, split, sample_id, text, token_ids
FROM raw.predictions;
