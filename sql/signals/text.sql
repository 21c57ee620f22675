-- What can be read off one candidate and its source. Every signal of the text is NULL where there is
-- none, and a share or ratio where it would be of nothing.
--
-- Blanks are ASCII white space and Unicode separators; outer ones do not count. Words are what stands
-- between blanks, characters are code points.
--   length_ratio, char_ratio  target over source, in words and in characters (Mozilla translations,
--                       browsermt).
--   copy                the target is its source, letter case apart (browsermt).
--   copy_overlap        share of the target's words that its source has too, letter case apart: 0.5
--                       and more is a partial copy in Ott et al. 2018 (arXiv 1803.00047).
--   letter_share        share of the characters that are letters, blanks left out; marks go with the
--                       letter before them. letter_word_share: share of the words whose first letter
--                       or digit is a letter. (Mozilla translations, browsermt: alpha_ratio, there
--                       with an alphabet for each language; here any script's letters are letters.)
--   numbers             runs of digits, of any common script, as often as they stand there; what
--                       parts groups of three (1,000 1.000 1'000 1 000) and zeros in front of a whole
--                       number do not count, any other sign between digits parts runs: 3.05 and 3,05
--                       are 3 and 05, 10:30 and 10h30 are 10 and 30, dates are their parts.
--                       number_match = (common + 1) / (different + 1), at least 1 in OpusCleaner's
--                       num_mismatch (Mozilla translations), which counts each number once.
--   urls                http, https, ftp and www addresses, as often as they stand there; the
--                       punctuation behind them is not theirs.
--   control_tokens      those among its ids, and those spelled in its text that its source does not
--                       spell: <|…|> (also full-width), <s>, <think>, <tool_call>, <start_of_turn>,
--                       [INST], <<SYS>> and like.
WITH pairs AS (
    SELECT
        c.sample_id, c.rank, c.error, c.finish_reason, c.n_tokens, c.control_tokens,
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
),
taken_apart AS (
    SELECT
        *,
        regexp_extract_all(lower(source), '[^\s\pZ]+') AS words_source,
        regexp_extract_all(lower(target), '[^\s\pZ]+') AS words_target,
        list_transform([source, target], lambda side:
            -- Digits of other scripts, by the code of their zero, Arabic to full-width.
            CASE WHEN regexp_matches(side, '[^\P{Nd}0-9]') THEN translate(
                side,
                array_to_string(list_transform(
                    [1632, 1776, 2406, 2534, 2662, 2790, 2918, 3046, 3174, 3302, 3430, 3664, 3792, 3872, 4160, 6112, 65296],
                    lambda zero: array_to_string(list_transform(range(zero, zero + 10), lambda code: chr(code::INTEGER)), '')
                ), ''),
                repeat('0123456789', 17)
            ) ELSE side END
        ) AS sides,
        list_transform([source, target], lambda side:
            CASE WHEN contains(side, '://') OR regexp_matches(side, '(?i)\bwww\.') THEN regexp_extract_all(
                side, '(?i)\b(?:(?:https?|ftp)://|www\.)[^\s\pZ<>"«»“”]*[^\s\pZ<>"«»“”''’()\[\]{}.,;:!?…。，、！？：；]/?'
            ) ELSE [] END
        ) AS urls
    FROM pairs
),
numbered AS (
    SELECT
        *,
        list_transform(sides, lambda side:
            CASE WHEN regexp_matches(side, '\d') THEN list_transform(
                regexp_extract_all(side, '\d{1,3}(?:[.,''’٬\pZ]\d{3})+(?:\b|[A-Za-z_])|[.,]?\d+'),
                lambda number: CASE WHEN number[1] IN ('.', ',') THEN number[2:]
                    ELSE regexp_replace(regexp_replace(number, '\D', '', 'g'), '^0+(\d)', '\1') END
            ) ELSE [] END
        ) AS numbers
    FROM taken_apart
),
compared AS (
    SELECT
        *,
        list_transform([numbers, urls], lambda kind: coalesce(list_sum(list_transform(
            list_distinct(kind[1]),
            lambda item: least(
                len(list_filter(kind[1], lambda other: other = item)),
                len(list_filter(kind[2], lambda other: other = item))
            )
        )), 0)::BIGINT) AS common,
        len(words_source) AS n_words_source,
        len(words_target) AS n_words_target,
        length(source) AS n_chars_source,
        length(target) AS n_chars_target,
        length(regexp_replace(target, '[\s\pZ]+', '', 'g')) AS n_printed,
        length(regexp_replace(target, '\pL\pM*|[\s\pZ]+', '', 'g')) AS n_others
    FROM numbered
)
SELECT
    sample_id,
    rank,
    error IS NOT NULL AS error,
    finish_reason = 'length' AS truncated,
    target = '' AS empty,
    n_words_source,
    n_words_target,
    n_chars_source,
    n_chars_target,
    n_tokens,
    n_words_target / nullif(n_words_source, 0) AS length_ratio,
    n_chars_target / nullif(n_chars_source, 0) AS char_ratio,
    lower(target) = lower(source) AS copy,
    len(list_filter(words_target, lambda word: list_contains(words_source, word))) / nullif(n_words_target, 0) AS copy_overlap,
    1 - n_others / nullif(n_printed, 0) AS letter_share,
    len(regexp_extract_all(target, '(?:^|[\s\pZ])[^\s\pZ\pL\pN]*\pL')) / nullif(n_words_target, 0) AS letter_word_share,
    CASE WHEN target IS NOT NULL THEN len(numbers[1]) - common[1] END AS numbers_missing,
    CASE WHEN target IS NOT NULL THEN len(numbers[2]) - common[1] END AS numbers_added,
    (common[1] + 1) / (numbers_missing + numbers_added + 1) AS number_match,
    CASE WHEN target IS NOT NULL THEN len(urls[1]) - common[2] END AS urls_missing,
    CASE WHEN target IS NOT NULL THEN len(urls[2]) - common[2] END AS urls_added,
    coalesce(control_tokens, 0) + len(list_filter(spelled, lambda token: NOT contains(source, token))) AS control_tokens
FROM compared
