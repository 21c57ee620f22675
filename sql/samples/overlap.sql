-- Rows whose source also stands in the split $held_out.
SELECT split, file, line
FROM raw
WHERE split IN ('train', 'unlabeled') AND source IN (SELECT source FROM raw WHERE split = $held_out)
ORDER BY split, row
