-- Candidates that both runs hold of a source of both: the same text, the same one of several equal.
WITH here AS (
    SELECT
        sample_id, COALESCE(text, '') AS text, error IS NULL AS made, kept, reasons,
        row_number() OVER (PARTITION BY sample_id, text ORDER BY rank) AS nth
    FROM verdicts
    JOIN candidates USING (sample_id, rank)
    SEMI JOIN common USING (sample_id)
),
there AS (
    SELECT
        sample_id, COALESCE(text, '') AS text, error IS NULL AS made, kept, reasons,
        row_number() OVER (PARTITION BY sample_id, text ORDER BY rank) AS nth
    FROM other.verdicts
    JOIN other.candidates USING (sample_id, rank)
    SEMI JOIN common USING (sample_id)
)
SELECT
    h.kept AS first_kept, t.kept AS second_kept,
    list_filter(t.reasons, lambda r: NOT list_contains(h.reasons, r)) AS gained,
    list_filter(h.reasons, lambda r: NOT list_contains(t.reasons, r)) AS lost
FROM here h
JOIN there t USING (sample_id, text, made, nth)
