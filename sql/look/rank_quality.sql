-- Does the teacher rank well?
--
-- A row is a rank: n candidates, the share of them kept and selected, and means of the score, of the
-- confidence, of the agreement with the sample's other candidates and of the similarity to gold where
-- it is visible. nearest_gold is the share of sources with gold whose candidate of the highest
-- chrf_gold (the first of equals) has this rank, and lost is how much chrF it lies below that one.
CREATE MACRO rank_quality() AS TABLE
WITH measured AS (
    SELECT
        rank, c.score, s.mean_logprob, s.agreement, s.chrf_gold, s.bleu_gold, kept, selected,
        max(chrf_gold) OVER (PARTITION BY sample_id) AS highest,
        row_number() OVER (PARTITION BY sample_id ORDER BY chrf_gold DESC NULLS LAST, rank) AS place
    FROM signals s
    JOIN candidates c USING (sample_id, rank)
    JOIN verdicts USING (sample_id, rank)
)
SELECT
    rank, count(*) AS n, avg(kept::INTEGER) AS kept, avg(selected::INTEGER) AS selected,
    avg(score) AS score, avg(mean_logprob) AS mean_logprob, avg(agreement) AS agreement,
    avg(chrf_gold) AS chrf_gold, avg(bleu_gold) AS bleu_gold,
    avg((place = 1)::INTEGER) FILTER (chrf_gold IS NOT NULL) AS nearest_gold,
    avg(highest - chrf_gold) AS lost
FROM measured
GROUP BY rank
ORDER BY rank;
