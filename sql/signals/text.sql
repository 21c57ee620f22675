-- What can be read off one candidate and its source. Every signal of the text is NULL where there is
-- none. Words are what stands between blanks; blanks are ASCII white space and Unicode separators.
WITH pairs AS (
    SELECT
        c.*,
        regexp_replace(s.source, '^[\s\pZ]+|[\s\pZ]+$', '', 'g') AS source,
        regexp_replace(c.text, '^[\s\pZ]+|[\s\pZ]+$', '', 'g') AS target
    FROM candidates c
    JOIN samples s USING (sample_id)
)
SELECT
    sample_id,
    rank,
    error IS NOT NULL AS error,
    finish_reason = 'length' AS truncated,
    target = '' AS empty,
    lower(target) = lower(source) AS copy,
    len(regexp_extract_all(source, '[^\s\pZ]+')) AS n_words_source,
    len(regexp_extract_all(target, '[^\s\pZ]+')) AS n_words_target,
    n_words_target / nullif(n_words_source, 0) AS length_ratio,
    n_tokens,
    mean_logprob
FROM pairs
