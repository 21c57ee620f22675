-- Candidates that were judged, those that met every rule, and those that have a text at all.
SELECT
    count(*) AS candidates,
    count(*) FILTER (len(reasons) = 0) AS kept,
    count(*) FILTER (error IS NOT TRUE) AS with_text
FROM judged
