-- Where was the teacher least sure, and between what?
--
-- A row is one of the n positions of the highest entropy (of what is stored, in nats): the target's
-- key, the text of the tokens before the position, the chosen token and its probability, and the
-- most probable other tokens with theirs. Blanks of single tokens read ▁.
--
-- Parameters: n, rows; before, tokens of context; others, alternatives; least, the first position to
-- look at (the first tokens of a target are rarely certain).
CREATE MACRO uncertain(n := 20, before := 8, others := 3, least := 0) AS TABLE
WITH worst AS (
    SELECT
        sample_id, origin, rank, position, token_id, logprob,
        topk_ids[:others + 1] AS ids,
        topk_logprobs[:others + 1] AS logprobs,
        held_entropy(topk_logprobs, tail_mass) AS entropy
    FROM logits_by_position
    WHERE position >= least
    ORDER BY entropy DESC, sample_id, origin, rank, position
    LIMIT n
),
spelled AS (
    SELECT
        worst.*, logits.token_ids,
        list_zip(ids, token_list(ids), logprobs) AS alternatives
    FROM worst
    JOIN logits USING (sample_id, origin, rank)
)
SELECT
    sample_id, origin, rank, position, round(entropy, 3) AS entropy,
    tokens_text(token_ids[greatest(position - before, 0) + 1 : position]) AS before,
    token_text(token_id) AS chosen, round(exp(logprob), 3) AS p,
    array_to_string(list_transform(
        list_filter(alternatives, lambda a: a[1] <> token_id)[:others],
        lambda a: a[2] || ' ' || printf('%.3f', exp(a[3]))
    ), '  ') AS others
FROM spelled
ORDER BY spelled.entropy DESC, sample_id, origin, rank, position;
