-- Rows with a rank that another row of their sample has, or a higher score than the rank before.
WITH told AS (
    SELECT
        "row", sample_id, rank, told,
        count(*) OVER (PARTITION BY sample_id, rank) AS sharing,
        min("row") OVER (PARTITION BY sample_id, rank) AS first,
        lag(told) OVER (PARTITION BY sample_id ORDER BY rank) AS before
    FROM ranks
),
faults AS (
    SELECT "row", CASE
        WHEN sharing > 1 AND "row" > first
            THEN fault(NULL, rank, 'as rank of sample ' || sample_id || ': row ' || first || ' has it: give each rank once')
        WHEN sharing = 1 AND told > before
            THEN fault(NULL, told, 'as score: is more than that of a lower rank: rank 0 has the highest')
    END AS fault
    FROM told
)
SELECT "row", fault.word, fault.number, fault.remedy
FROM faults
WHERE fault IS NOT NULL
ORDER BY "row"
LIMIT 1
