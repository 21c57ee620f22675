-- The verdicts `then` beside those that stand: what is selected, and which targets stay.
WITH targets AS (
    SELECT sample_id, n.rank IS NOT NULL AS now, t.rank IS NOT NULL AS later
    FROM (SELECT sample_id, rank FROM verdicts WHERE selected) AS n
    FULL JOIN (SELECT sample_id, rank FROM "then" WHERE selected) AS t USING (sample_id, rank)
), sources AS (
    SELECT sample_id, bool_or(later) AS targeted, bool_or(now <> later) AS touched
    FROM targets
    GROUP BY sample_id
)
SELECT
    (SELECT count(*) FROM targets WHERE later) AS selected,
    (SELECT count(*) FROM samples WHERE split IN ('train', 'unlabeled'))
        - (SELECT count(*) FROM sources WHERE targeted) AS without_target,
    (SELECT count(*) FROM targets WHERE now AND later) AS same,
    (SELECT count(*) FROM targets WHERE later AND NOT now) AS added,
    (SELECT count(*) FROM targets WHERE now AND NOT later) AS dropped,
    (SELECT count(*) FROM sources WHERE touched) AS sources
