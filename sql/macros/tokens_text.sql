-- The text that ids spell together, special tokens as they are written. Characters of several tokens
-- are put together from their bytes; where a cut leaves half a character, the tokens are joined.
-- (TRY takes no subquery, so the bytes come to it through a list of one.)
CREATE MACRO tokens_text(ids) AS COALESCE(
    list_transform(
        [array_to_string(list_transform(
            list_select(
                COALESCE((SELECT list(hex(bytes) ORDER BY token_id) FROM tokens), []::VARCHAR[]),
                list_transform(ids, lambda id: id + 1)
            ),
            lambda piece, i: COALESCE(piece, hex('<' || ids[i] || '>'))
        ), '')],
        lambda spelled: TRY(decode(unhex(spelled)))
    )[1],
    replace(array_to_string(token_list(ids), ''), '▁', ' ')
);
