-- A row is a unit of work that is done, from its record.
CREATE VIEW shards AS
SELECT
    shard, samples, candidates, tokens, seconds,
    list_transform(
        files, lambda f: {'path': f.path, 'rows': f."rows", 'sha256': f.sha256}
    ) AS files
FROM raw.shards;
