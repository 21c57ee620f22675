-- A row for every candidate to be: its sample, its rank, and the shard it will stand in, $size samples
-- each, in the order in which the file first names them: so a shard's rows lie together there, and
-- nothing wide needs sorting. Ranks are the file's own where it has them, else by score, then by row. The score is told, or
-- sum_logprob / tokens^$exponent, or the mean where there are no tokens to count.
CREATE TEMP TABLE ranks AS
WITH light AS (
    SELECT
        "row", rank, score AS told, error,
        len(token_ids) AS n,
        coalesce(list_sum(token_logprobs), sum_logprob, mean_logprob * len(token_ids)) AS total,
        coalesce(score, total / n ^ $exponent, mean_logprob) AS score
    FROM offered
),
counted AS (
    SELECT
        l.*, a.sample_id, a.prompt_hash, a.place AS place_in_run,
        min(l."row") OVER (PARTITION BY a.sample_id) AS first,
        row_number() OVER (PARTITION BY a.sample_id ORDER BY l."row") - 1 AS ordinal,
        row_number() OVER (PARTITION BY a.sample_id ORDER BY l.error IS NOT NULL, l.score DESC NULLS LAST, l."row") - 1 AS by_score
    FROM light AS l
    JOIN addressed AS a ON a."row" = l."row"
    WHERE a.place IS NOT NULL
)
SELECT
    "row", sample_id, prompt_hash, told, score, total,
    dense_rank() OVER (ORDER BY first, place_in_run) - 1 AS place,
    CASE WHEN $ranked THEN coalesce(rank, 0) ELSE by_score END::INTEGER AS rank,
    ordinal::INTEGER AS ordinal,
    (place // $size)::INTEGER AS shard
FROM counted
ORDER BY shard
