-- Candidates of which something is true, among those of which it is known.
WITH flags AS (
    UNPIVOT (
        SELECT
            selected, truncated, empty, signals.copy, duplicate, near_duplicate, near_test,
            repetition > 1 AS repetitive, control_tokens > 0 AS control_tokens,
            numbers_missing > 0 AS numbers_missing, numbers_added > 0 AS numbers_added,
            urls_missing > 0 AS urls_missing, urls_added > 0 AS urls_added,
            placeholders_missing > 0 AS placeholders_missing,
            glossary_missing > 0 AS glossary_missing
        FROM signals
        JOIN verdicts USING (sample_id, rank)
    ) ON COLUMNS(* EXCLUDE (selected)) INTO NAME signal VALUE flag
)
SELECT
    signal,
    count(*) FILTER (flag) AS candidates,
    100 * count(*) FILTER (flag) / count(*) AS percent,
    count(*) FILTER (flag AND selected) AS selected
FROM flags
GROUP BY signal
HAVING count(*) FILTER (flag) > 0 OR signal IN ('near_test', 'near_duplicate')
ORDER BY candidates DESC, signal
