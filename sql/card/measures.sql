-- What was measured. Of more than 262,144 candidates, quantiles are of a fixed part.
WITH measured AS (
    UNPIVOT (
        SELECT
            selected,
            md5_number_lower(sample_id) % (SELECT 1 + count(*) // 262144 FROM signals) = 0 AS drawn,
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
    part,
    measure,
    count(*) AS measured,
    favg(amount) AS mean,
    min(amount) AS min,
    quantile_cont(amount, 0.05) FILTER (drawn) AS p5,
    quantile_cont(amount, 0.25) FILTER (drawn) AS p25,
    median(amount) FILTER (drawn) AS median,
    quantile_cont(amount, 0.75) FILTER (drawn) AS p75,
    quantile_cont(amount, 0.95) FILTER (drawn) AS p95,
    max(amount) AS max
FROM measured
JOIN (VALUES ('candidates'), ('selected')) AS parts(part) ON part = 'candidates' OR selected
GROUP BY part, measure
ORDER BY part, list_position([
    'n_words_source', 'n_words_target', 'n_tokens', 'length_ratio', 'char_ratio', 'copy_overlap',
    'letter_share', 'number_match', 'repetition', 'mean_logprob', 'min_logprob', 'entropy',
    'language_confidence', 'chrf_gold', 'bleu_gold', 'agreement', 'reverse_logprob'
], measure)
