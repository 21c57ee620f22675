-- Sources by how many different texts their candidates have, where there are several candidates.
SELECT different, count(*) AS sources
FROM (
    SELECT count(*) AS candidates, count(*) FILTER (duplicate_of IS NULL) AS different
    FROM candidates
    WHERE error IS NULL
    GROUP BY sample_id
)
WHERE candidates > 1
GROUP BY different
ORDER BY different
