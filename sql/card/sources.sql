-- Sources by split, and whose gold the student may see.
SELECT
    split,
    count(*) AS sources,
    count(gold) AS with_gold,
    count(*) FILTER (gold_visible) AS gold_the_student_may_see
FROM samples
GROUP BY split
ORDER BY list_position(['train', 'unlabeled', 'validation', 'test'], split)
