-- The ten languages most often identified, of sources and of targets.
SELECT
    part, language,
    count(*) AS candidates,
    100 * count(*) / sum(count(*)) OVER (PARTITION BY part) AS percent,
    count(*) FILTER (selected) AS selected
FROM (
    SELECT selected, unnest([
        {'part': 'source', 'language': language_source},
        {'part': 'target', 'language': language_target}
    ], recursive := true)
    FROM signals
    JOIN verdicts USING (sample_id, rank)
)
WHERE language IS NOT NULL
GROUP BY part, language
QUALIFY row_number() OVER (PARTITION BY part ORDER BY count(*) DESC, language) <= 10
ORDER BY part, candidates DESC, language
