-- Languages identified in the targets, by verdict; the rarest stand together.
WITH counted AS (
    SELECT
        language_target AS language,
        count(*) FILTER (selected) AS selected,
        count(*) FILTER (kept AND NOT selected) AS kept,
        count(*) FILTER (NOT kept) AS rejected
    FROM signals
    JOIN verdicts USING (sample_id, rank)
    WHERE language_target IS NOT NULL
    GROUP BY language_target
),
placed AS (
    SELECT *, row_number() OVER (ORDER BY selected + kept + rejected DESC, language) AS place
    FROM counted
)
SELECT
    CASE WHEN place <= 5 THEN language ELSE 'others' END AS language,
    sum(selected)::BIGINT AS selected, sum(kept)::BIGINT AS kept, sum(rejected)::BIGINT AS rejected
FROM placed
GROUP BY ALL
ORDER BY min(place)
