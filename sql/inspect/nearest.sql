-- The ids most like one that was asked for.
SELECT sample_id
FROM samples
ORDER BY starts_with(sample_id, $sample_id) DESC,
    jaro_winkler_similarity(sample_id, $sample_id) DESC, sample_id
LIMIT 3
