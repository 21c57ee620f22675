-- How many candidates fail each rule, how many of them no other, and how many of them have a text.
SELECT
    reason,
    count(*) AS reasons,
    count(*) FILTER (len(failed) = 1) AS reasons_alone,
    count(*) FILTER (error IS NOT TRUE) AS reasons_with_text
FROM (SELECT error, reasons AS failed, unnest(reasons) AS reason FROM judged)
GROUP BY reason
