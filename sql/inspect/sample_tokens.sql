-- The tokens of one source's hypotheses, as bytes, with their log-probabilities, where they are kept.
SELECT
    rank, token_logprobs AS logprobs,
    list_transform(
        list_select(
            COALESCE((SELECT list(bytes ORDER BY token_id) FROM tokens), []::BLOB[]),
            list_transform(token_ids, lambda id: id + 1)
        ),
        lambda piece, i: COALESCE(piece, encode('<' || token_ids[i] || '>'))
    ) AS pieces
FROM logits
WHERE sample_id = $sample_id AND origin = 'candidate' AND len(token_logprobs) = n_tokens
