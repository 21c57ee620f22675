-- A row is an id of the teacher's tokenizer: what it adds to a text as bytes, and as a token that is
-- readable by itself, blanks as ▁, bytes that are no UTF-8 alone as \xc3. Both are NULL for an id
-- that stands for nothing.
CREATE VIEW tokens AS
SELECT token_id, token, bytes
FROM raw.tokens;
