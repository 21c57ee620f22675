-- Sources to learn from: of each run, of both, and of one alone. Of equal ids, some may have another
-- text (ids of the user's own), and some another prompt.
WITH here AS (
    SELECT sample_id, true AS here FROM samples WHERE split IN ('train', 'unlabeled')
),
there AS (
    SELECT sample_id, true AS there FROM other.samples WHERE split IN ('train', 'unlabeled')
)
SELECT
    count(here) AS "first", count(there) AS "second",
    (SELECT count(*) FROM common) AS "both",
    count(here) FILTER (there IS NULL) AS only_first,
    count(there) FILTER (here IS NULL) AS only_second,
    count(*) FILTER (here AND there) - (SELECT count(*) FROM common) AS other_text,
    (SELECT count(*) FILTER (NOT same_prompt) FROM common) AS other_prompt
FROM here
FULL JOIN there USING (sample_id)
