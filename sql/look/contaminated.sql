-- What stands near the test split?
--
-- A row is one of n candidates whose source is near a test source, or whose text is near a test gold
-- (signal near_test): its key, whether it was selected, and the test pair that is most like it, with
-- how alike the pair's nearer side is (`alike`).
--
-- Parameters: n, rows, in the order of their ids.
CREATE MACRO contaminated(n := 20) AS TABLE
WITH near AS (
    SELECT sample_id, rank, s.source, c.text AS target
    FROM signals g
    JOIN candidates c USING (sample_id, rank)
    JOIN samples s USING (sample_id)
    WHERE near_test
    ORDER BY sample_id, rank
    LIMIT n
),
compared AS (
    SELECT *, trigrams(source) AS of_source, trigrams(target) AS of_target FROM near
),
tested AS (
    SELECT
        source AS test_source, gold AS test_gold,
        trigrams(source) AS of_test_source, trigrams(gold) AS of_test_gold
    FROM samples
    WHERE split = 'test'
),
shared AS (
    SELECT
        *, len(list_intersect(of_source, of_test_source)) AS sources,
        len(list_intersect(of_target, of_test_gold)) AS targets
    FROM compared
    CROSS JOIN tested
),
pairs AS (
    SELECT
        *, greatest(
            sources / (len(of_source) + len(of_test_source) - sources),
            targets / (len(of_target) + len(of_test_gold) - targets)
        ) AS alike
    FROM shared
)
SELECT
    sample_id, rank, selected, alike, source, test_source, target, test_gold
FROM pairs
JOIN verdicts USING (sample_id, rank)
QUALIFY row_number() OVER (
    PARTITION BY sample_id, rank ORDER BY alike DESC, test_source, test_gold
) = 1
ORDER BY sample_id, rank;
