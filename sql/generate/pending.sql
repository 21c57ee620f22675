-- Sources that no shard holds a candidate for. Samples are stored in file order, and DuckDB keeps
-- the order of the side it streams; sorting would hold every prompt in memory.
SELECT s.sample_id, s.prompt_hash, s.prompt_ids
FROM raw.samples AS s
ANTI JOIN raw.candidates AS c ON s.sample_id = c.sample_id AND s.prompt_hash = c.prompt_hash
WHERE s.split IN ('train', 'unlabeled')
