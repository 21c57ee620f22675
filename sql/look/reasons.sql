-- How many candidates did each rule reject, alone and together with others?
--
-- A row is a rule: how many candidates failed it, their share of all, how many failed it alone (and
-- would be kept without it), how many sources lost every candidate and might have one again without
-- the rule, and the rules that were failed with it, with how often.
CREATE MACRO reasons() AS TABLE
WITH failed AS (
    SELECT sample_id, rank, reasons, unnest(reasons) AS rule FROM verdicts
),
kept AS (
    SELECT sample_id, bool_or(kept) AS any_kept FROM verdicts GROUP BY sample_id
),
pairs AS (
    SELECT rule, other, count(*) AS n
    FROM (SELECT rule, unnest(reasons) AS other FROM failed)
    WHERE other <> rule
    GROUP BY rule, other
),
beside AS (
    SELECT rule, string_agg(other || ' ' || n, ', ' ORDER BY n DESC, other) AS with_others
    FROM pairs
    GROUP BY rule
)
SELECT
    rule, count(*) AS failed, count(*) / (SELECT count(*) FROM verdicts) AS share,
    count(*) FILTER (len(reasons) = 1) AS alone,
    count(DISTINCT sample_id) FILTER (len(reasons) = 1 AND NOT any_kept) AS sources_lost,
    any_value(with_others) AS with_others
FROM failed
JOIN kept USING (sample_id)
LEFT JOIN beside USING (rule)
GROUP BY rule
ORDER BY failed DESC, rule;
