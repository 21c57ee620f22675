-- How many candidates fail each rule; one may fail several.
SELECT unnest(reasons) AS reason, count(*) AS candidates
FROM verdicts
GROUP BY reason
