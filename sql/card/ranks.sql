-- Candidates by rank: how like the gold that the student may see, how like each other, how sure.
WITH ranked AS (
    SELECT
        rank, count(*) AS candidates, count(*) FILTER (selected) AS selected,
        count(chrf_gold) AS with_gold,
        favg(chrf_gold) AS chrf_to_gold,
        favg(bleu_gold) AS bleu_to_gold,
        favg(agreement) AS mean_agreement,
        favg(mean_logprob) AS mean_logprob
    FROM signals
    JOIN verdicts USING (sample_id, rank)
    WHERE NOT error
    GROUP BY rank
)
SELECT rank::VARCHAR AS rank, COLUMNS(* EXCLUDE (rank))
FROM ranked
WHERE (SELECT max(rank) > 0 OR max(with_gold) > 0 FROM ranked)
ORDER BY ranked.rank
