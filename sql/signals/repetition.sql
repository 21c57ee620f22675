-- How much of a target is said again, after the table of Gopher's repetition filter (Rae et al. 2021,
-- arXiv 2112.11446, table A1). Every signal is NULL where there is no text, and 0 where nothing is
-- said twice. Words are what stands between blanks, as they are written; a share is of the characters
-- in words, and counts each character once, as the paper asks, however many n-grams it stands in.
--   top_Ngram_share        what the most frequent n-gram covers, all its occurrences together; of
--                          several as frequent, the one that covers most. An n-gram that occurs once
--                          is no repetition, or every target of N words would be one (RedPajama-V2).
--   duplicate_Ngram_share  what all n-grams that occur more than once cover, first occurrences too.
--   duplicate_line_share   lines that an earlier line equals, of all lines that are not blank.
--   repetition             the largest of the shares, each divided by its limit in the table: 1 is
--                          the most that Gopher lets pass.
-- Only targets with a word pair that occurs twice are taken apart: no longer n-gram can be twice in
-- the others. An n-gram goes by the place where it first stands; one of n + 1 words is two of n words,
-- a word apart, and can be twice only where both are. So each round looks at what the last has left.
WITH RECURSIVE worded AS (
    SELECT sample_id, rank, regexp_extract_all(text, '[^\s\pZ]+') AS words
    FROM candidates
),
repeating AS (
    SELECT *
    FROM worded
    WHERE len(list_distinct(list_transform(range(1, len(words)), lambda i: words[i] || ' ' || words[i + 1])))
        < len(words) - 1
),
spread AS (
    SELECT sample_id, rank, unnest(words) AS word, generate_subscripts(words, 1) AS place
    FROM repeating
),
single AS (
    SELECT
        sample_id, rank, place,
        min(place) OVER same AS first,
        count(*) OVER same AS times,
        sum(length(word)) OVER (PARTITION BY sample_id, rank ORDER BY place) AS until,
        until - length(word) AS since
    FROM spread
    WINDOW same AS (PARTITION BY sample_id, rank, word)
),
grams(n, sample_id, rank, place, first, since, until) AS (
    SELECT 1, sample_id, rank, place, first, since, until
    FROM single
    WHERE times > 1
    UNION ALL
    SELECT n + 1, sample_id, rank, place, min(place) OVER same, since, next_until
    FROM (
        SELECT
            n, sample_id, rank, place, first, since,
            lead(place) OVER following AS next_place,
            lead(first) OVER following AS next_first,
            lead(until) OVER following AS next_until
        FROM grams
        WHERE n < 10
        WINDOW following AS (PARTITION BY sample_id, rank ORDER BY place)
    )
    WHERE next_place = place + 1
    WINDOW same AS (PARTITION BY sample_id, rank, first, next_first)
    QUALIFY count(*) OVER same > 1
),
covered AS (
    SELECT
        n, sample_id, rank, first,
        until - greatest(since, lag(until, 1, 0) OVER (PARTITION BY n, sample_id, rank, first ORDER BY place)) AS by_one,
        until - greatest(since, lag(until, 1, 0) OVER (PARTITION BY n, sample_id, rank ORDER BY place)) AS by_any
    FROM grams
    WHERE n > 1
),
each AS (
    SELECT n, sample_id, rank, {'times': count(*), 'by_one': sum(by_one)} AS covers, sum(by_any) AS by_any
    FROM covered
    GROUP BY n, sample_id, rank, first
),
twice AS (
    SELECT
        sample_id, rank,
        (max(covers) FILTER (n = 2)).by_one AS top_2,
        (max(covers) FILTER (n = 3)).by_one AS top_3,
        (max(covers) FILTER (n = 4)).by_one AS top_4,
        sum(by_any) FILTER (n = 5) AS duplicate_5,
        sum(by_any) FILTER (n = 6) AS duplicate_6,
        sum(by_any) FILTER (n = 7) AS duplicate_7,
        sum(by_any) FILTER (n = 8) AS duplicate_8,
        sum(by_any) FILTER (n = 9) AS duplicate_9,
        sum(by_any) FILTER (n = 10) AS duplicate_10
    FROM each
    GROUP BY sample_id, rank
),
lined AS (
    SELECT
        sample_id, rank,
        CASE WHEN text IS NOT NULL THEN 0.0::DOUBLE END AS none,
        length(regexp_replace(text, '[\s\pZ]+', '', 'g')) AS whole,
        CASE WHEN contains(text, chr(10)) THEN regexp_extract_all(text, '[^\s\pZ](?:[^\n]*[^\s\pZ])?') END AS lines
    FROM candidates
)
SELECT
    sample_id,
    rank,
    coalesce(top_2 / whole, none) AS top_2gram_share,
    coalesce(top_3 / whole, none) AS top_3gram_share,
    coalesce(top_4 / whole, none) AS top_4gram_share,
    coalesce(duplicate_5 / whole, none) AS duplicate_5gram_share,
    coalesce(duplicate_6 / whole, none) AS duplicate_6gram_share,
    coalesce(duplicate_7 / whole, none) AS duplicate_7gram_share,
    coalesce(duplicate_8 / whole, none) AS duplicate_8gram_share,
    coalesce(duplicate_9 / whole, none) AS duplicate_9gram_share,
    coalesce(duplicate_10 / whole, none) AS duplicate_10gram_share,
    coalesce(1 - len(list_distinct(lines)) / nullif(len(lines), 0), none) AS duplicate_line_share,
    greatest(
        top_2gram_share / 0.20, top_3gram_share / 0.18, top_4gram_share / 0.16,
        duplicate_5gram_share / 0.15, duplicate_6gram_share / 0.14, duplicate_7gram_share / 0.13,
        duplicate_8gram_share / 0.12, duplicate_9gram_share / 0.11, duplicate_10gram_share / 0.10,
        duplicate_line_share / 0.30
    ) AS repetition
FROM lined
LEFT JOIN twice USING (sample_id, rank)
