-- What stands near the test split?
--
-- A row is one of n candidates whose source is near a test source, or whose text is near a test gold
-- (signal near_test): its key, whether it was selected, and the test pair that is most like it, with
-- the share of characters that agree, of the pair's nearer side (1 less the edit distance over the
-- longer text's length).
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
pairs AS (
    SELECT
        near.*, t.source AS test_source, t.gold AS test_gold, greatest(
            1 - levenshtein(near.source, t.source)
                / greatest(len(near.source), len(t.source), 1),
            1 - levenshtein(target, t.gold) / greatest(len(target), len(t.gold), 1)
        ) AS alike
    FROM near
    JOIN samples t ON t.split = 'test'
)
SELECT
    sample_id, rank, selected, alike, source, test_source, target, test_gold
FROM pairs
JOIN verdicts USING (sample_id, rank)
QUALIFY row_number() OVER (
    PARTITION BY sample_id, rank ORDER BY alike DESC, test_source, test_gold
) = 1
ORDER BY sample_id, rank;
