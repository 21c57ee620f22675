-- One token as it reads by itself: ▁chat. An id that is no token reads <6001>.
CREATE MACRO token_text(id) AS
    COALESCE((SELECT list(token ORDER BY token_id) FROM tokens)[id + 1], '<' || id || '>');
