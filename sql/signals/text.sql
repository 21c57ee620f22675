-- What can be read off one candidate and its source. Every signal of the text is NULL where there is
-- none. Words are what stands between blanks; blanks are ASCII white space and Unicode separators.
-- Control tokens are those among its ids, and those spelled in its text that its source does not
-- spell: <|…|> (also full-width), <s>, <think>, <tool_call>, <start_of_turn>, [INST], <<SYS>> and like.
WITH pairs AS (
    SELECT
        c.*,
        regexp_replace(s.source, '^[\s\pZ]+|[\s\pZ]+$', '', 'g') AS source,
        regexp_replace(c.text, '^[\s\pZ]+|[\s\pZ]+$', '', 'g') AS target,
        regexp_extract_all(
            c.text,
            '<[|｜][^<>|｜\n]{1,40}[|｜]>'
            || '|</?(?:s|pad|unk|bos|eos|sep|cls|mask|think|thinking|reasoning|answer|tools?'
            || '|tool_(?:calls?|responses?)|(?:start|end)_of_(?:turn|text|image)|extra_id_\d+)>'
            || '|<</?SYS>>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT)|THINK'
            || '|PAD|UNK|BOS|EOS|CLS|SEP|MASK|gMASK)\]'
        ) AS spelled
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
    coalesce(control_tokens, 0) + len(list_filter(spelled, lambda token: NOT contains(source, token))) AS control_tokens,
    len(regexp_extract_all(source, '[^\s\pZ]+')) AS n_words_source,
    len(regexp_extract_all(target, '[^\s\pZ]+')) AS n_words_target,
    length(source) AS n_chars_source,
    length(target) AS n_chars_target,
    n_tokens,
    n_words_target / nullif(n_words_source, 0) AS length_ratio,
    n_chars_target / nullif(n_chars_source, 0) AS char_ratio,
    NULL AS copy_overlap,
    NULL AS letter_share,
    NULL AS letter_word_share,
    NULL AS number_match,
    NULL AS numbers_missing,
    NULL AS numbers_added,
    NULL AS urls_missing,
    NULL AS urls_added
FROM pairs
