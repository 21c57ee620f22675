-- Candidates that fail each rule, of all that were judged; a candidate may fail several.
SELECT
    reason AS rule,
    count(*) AS candidates,
    100 * count(*) / (SELECT count(*) FROM verdicts) AS percent,
    count(*) FILTER (alone) AS by_this_rule_alone
FROM (SELECT unnest(reasons) AS reason, len(reasons) = 1 AS alone FROM verdicts)
GROUP BY reason
ORDER BY candidates DESC, rule
