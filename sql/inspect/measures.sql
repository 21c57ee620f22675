-- Lengths and confidence, of all candidates that have a text and of the selected ones.
WITH measured AS (
    UNPIVOT (
        SELECT
            selected,
            n_words_source::DOUBLE AS n_words_source,
            n_words_target::DOUBLE AS n_words_target,
            n_tokens::DOUBLE AS n_tokens,
            length_ratio,
            mean_logprob
        FROM signals
        JOIN verdicts USING (sample_id, rank)
        WHERE NOT error
    ) ON COLUMNS(* EXCLUDE (selected)) INTO NAME measure VALUE amount
)
SELECT
    measure,
    part AS "of",
    avg(amount) AS mean,
    quantile_cont(amount, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]) AS quantiles
FROM measured
JOIN (VALUES ('candidates'), ('selected')) AS parts(part) ON part = 'candidates' OR selected
GROUP BY measure, part
ORDER BY part, list_position(
    ['n_words_source', 'n_words_target', 'length_ratio', 'n_tokens', 'mean_logprob'], measure
)
