-- The same for TSV: a row is a line and a tab ends a cell, whatever stands in the text. Inside it a
-- tab is \t, a line feed \n, a carriage return \r, and a backslash \\; what is NULL is empty.
SELECT
    sample_id,
    COLUMNS(['source', 'target'])
        .replace('\', '\\').replace(chr(9), '\t').replace(chr(10), '\n').replace(chr(13), '\r'),
    rank, score, mean_logprob, finish_reason
FROM chosen
