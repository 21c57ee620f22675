-- What the teacher made.
SELECT
    count(*) AS candidates,
    count(error) AS errors,
    count(DISTINCT sample_id) AS sources,
    coalesce(sum(n_tokens), 0)::BIGINT AS tokens
FROM candidates
