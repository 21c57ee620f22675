-- Sources by split: how many, how many with gold, how many whose gold the student may see.
SELECT
    split,
    count(*) AS sources,
    count(gold) AS with_gold,
    count(*) FILTER (gold_visible) AS visible_gold
FROM samples
GROUP BY split
ORDER BY list_position(['train', 'unlabeled', 'validation', 'test'], split)
