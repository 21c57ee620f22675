-- How many candidates failed each rule, in each run; and of the candidates that both hold, how many
-- fail it in the second run alone (gained) and in the first alone (lost).
WITH failed AS (
    SELECT 'first' AS part, unnest(reasons) AS rule FROM verdicts
    UNION ALL SELECT 'second', unnest(reasons) FROM other.verdicts
    UNION ALL SELECT 'gained', unnest(gained) FROM judged
    UNION ALL SELECT 'lost', unnest(lost) FROM judged
)
SELECT
    rule,
    count(*) FILTER (part = 'first') AS "first",
    count(*) FILTER (part = 'second') AS "second",
    count(*) FILTER (part = 'gained') AS gained,
    count(*) FILTER (part = 'lost') AS lost
FROM failed
GROUP BY rule
ORDER BY gained + lost DESC, "first" + "second" DESC, rule
