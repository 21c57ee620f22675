-- Targets of the sources of both runs, side by side: where a run selects several per source, the first
-- beside the first, and so on. alike is of those that differ.
WITH here AS (
    SELECT *, row_number() OVER (PARTITION BY sample_id ORDER BY rank) AS place
    FROM pseudolabels
    SEMI JOIN common USING (sample_id)
),
there AS (
    SELECT *, row_number() OVER (PARTITION BY sample_id ORDER BY rank) AS place
    FROM other.pseudolabels
    SEMI JOIN common USING (sample_id)
)
SELECT
    sample_id, place, h.rank AS first_rank, t.rank AS second_rank,
    h.target AS first_target, t.target AS second_target,
    CASE WHEN h.target <> t.target THEN alike(h.target, t.target) END AS alike
FROM here h
FULL JOIN there t USING (sample_id, place)
