-- From candidates to pseudolabels.
SELECT
    (SELECT count(*) FROM candidates) AS candidates,
    (SELECT sum(n_tokens) FROM candidates) AS tokens,
    (SELECT count(error) FROM candidates) AS with_an_error,
    count(*) FILTER (kept) AS kept,
    count(*) FILTER (selected) AS selected,
    (SELECT count(*) FROM samples WHERE split IN ('train', 'unlabeled'))
        - count(DISTINCT sample_id) FILTER (selected) AS sources_without_a_target
FROM verdicts
