-- What a judgement came to. The digest is of the set of selected targets, in whatever order.
SELECT
    count(*) AS candidates,
    count(*) FILTER (kept) AS kept,
    count(*) FILTER (selected) AS selected,
    (SELECT count(*) FROM samples WHERE split IN ('train', 'unlabeled'))
        - (SELECT count(*) FROM (SELECT DISTINCT sample_id FROM verdicts WHERE selected))
        AS without_target,
    (
        SELECT bit_xor(md5_number(concat_ws(chr(31), sample_id, rank, target)))::VARCHAR
        FROM pseudolabels
    ) AS verdicts_digest
FROM verdicts
