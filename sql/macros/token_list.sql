-- Every token of a list of ids, as token_text reads it.
CREATE MACRO token_list(ids) AS list_transform(
    list_select(
        COALESCE((SELECT list(token ORDER BY token_id) FROM tokens), []::VARCHAR[]),
        list_transform(ids, lambda id: id + 1)
    ),
    lambda token, i: COALESCE(token, '<' || ids[i] || '>')
);
