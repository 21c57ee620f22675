-- Candidates that each rule rejects: those it rejects alone, and those other rules reject too.
SELECT
    reason AS rule,
    count(*) AS candidates,
    count(*) FILTER (len(reasons) = 1) AS alone,
    count(*) FILTER (len(reasons) > 1) AS with_others
FROM (SELECT reasons, unnest(reasons) AS reason FROM verdicts)
GROUP BY reason
ORDER BY candidates DESC, rule
