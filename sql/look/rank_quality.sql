-- Does the teacher rank well?
--
-- A row is a rank: n candidates, the share of them kept and selected, and means of the score, of the
-- agreement with the sample's other candidates and of the similarity to gold where it is visible. best
-- is the share of the rank's candidates with gold that are the nearest to it of their sample (the
-- first of equals, by chrf_gold), and lost is how much chrF they lie below that one on average.
CREATE MACRO rank_quality() AS TABLE
WITH measured AS (
    SELECT
        rank, c.score, s.agreement, s.chrf_gold, s.bleu_gold, kept, selected,
        max(chrf_gold) OVER (PARTITION BY sample_id) AS highest,
        row_number() OVER (PARTITION BY sample_id ORDER BY chrf_gold DESC NULLS LAST, rank) AS place
    FROM signals s
    JOIN candidates c USING (sample_id, rank)
    JOIN verdicts USING (sample_id, rank)
)
SELECT
    rank, count(*) AS n,
    round(avg(kept::INTEGER), 4) AS kept, round(avg(selected::INTEGER), 4) AS selected,
    round(avg(score), 3) AS score, round(avg(agreement), 2) AS agreement,
    round(avg(chrf_gold), 2) AS chrf_gold, round(avg(bleu_gold), 2) AS bleu_gold,
    round(avg((place = 1)::INTEGER) FILTER (chrf_gold IS NOT NULL), 4) AS best,
    round(avg(highest - chrf_gold), 2) AS lost
FROM measured
GROUP BY rank
ORDER BY rank;
