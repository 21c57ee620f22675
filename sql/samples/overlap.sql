-- Rows whose source also stands in the split $held_out; of conversations, the whole counts.
WITH told AS (
    SELECT split, row, file, line, coalesce(conversation, source) AS content FROM raw
)
SELECT split, file, line
FROM told
WHERE split IN ('train', 'unlabeled') AND content IN (SELECT content FROM told WHERE split = $held_out)
ORDER BY split, row
