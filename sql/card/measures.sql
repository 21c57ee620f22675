-- What was measured. Of more than 131,072 candidates, quantiles are of a fixed part.
WITH measured AS (
    UNPIVOT (
        SELECT
            selected,
            md5_number_lower(sample_id) % (SELECT 1 + count(*) // 131072 FROM signals) = 0 AS drawn,
            n_words_source::DOUBLE AS n_words_source, n_words_target::DOUBLE AS n_words_target,
            n_tokens::DOUBLE AS n_tokens, length_ratio, char_ratio, copy_overlap, letter_share,
            number_match, repetition, mean_logprob, min_logprob, entropy, language_confidence,
            chrf_gold, bleu_gold, agreement, reverse_logprob
        FROM signals
        JOIN verdicts USING (sample_id, rank)
        WHERE NOT error
    ) ON COLUMNS(* EXCLUDE (selected, drawn)) INTO NAME measure VALUE amount
)
SELECT
    part, measure, measured, mean, min,
    quantiles[1] AS p5, quantiles[2] AS p25, quantiles[3] AS median, quantiles[4] AS p75,
    quantiles[5] AS p95, max
FROM (
    SELECT
        part, measure, count(*) AS measured, favg(amount) AS mean, min(amount) AS min,
        quantile_cont(amount, [0.05, 0.25, 0.5, 0.75, 0.95]) FILTER (drawn) AS quantiles,
        max(amount) AS max
    FROM measured
    JOIN (VALUES ('candidates'), ('selected')) AS parts(part) ON part = 'candidates' OR selected
    GROUP BY part, measure
)
ORDER BY part, list_position([
    'n_words_source', 'n_words_target', 'n_tokens', 'length_ratio', 'char_ratio', 'copy_overlap',
    'letter_share', 'number_match', 'repetition', 'mean_logprob', 'min_logprob', 'entropy',
    'language_confidence', 'chrf_gold', 'bleu_gold', 'agreement', 'reverse_logprob'
], measure)
