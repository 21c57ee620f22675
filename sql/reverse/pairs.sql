-- Every pair of source and target once, those of like length together, the longest first.
SELECT pair, any_value(source) AS source, any_value(text) AS text
FROM (
    SELECT s.source, c.text, md5(concat(length(s.source), ' ', s.source, c.text)) AS pair
    FROM candidates c
    JOIN samples s USING (sample_id)
    WHERE c.text IS NOT NULL
)
GROUP BY pair
ORDER BY length(any_value(source)) + length(any_value(text)) DESC, pair
