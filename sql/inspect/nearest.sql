-- The ids of the sources that hold the words asked for, or that are most like the id.
SELECT sample_id
FROM samples
ORDER BY starts_with(sample_id, $sample_id) DESC,
    contains(lower(source), lower($sample_id)) DESC,
    jaro_winkler_similarity(sample_id, $sample_id) DESC, sample_id
LIMIT 3
