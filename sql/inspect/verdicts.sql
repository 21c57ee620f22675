-- What the judge made of it.
SELECT
    count(*) AS candidates,
    count(*) FILTER (kept) AS kept,
    count(*) FILTER (selected) AS selected
FROM verdicts
