-- How far do the teachers of two runs agree, of the same targets?
--
-- A row is a position (from 0) of an origin; position NULL is all of them. Compared are positions
-- that come after equal tokens in both runs, of rows of the same sample, origin and rank: n of them;
-- same_top is the share where both put the same token first; common, how many ids both hold on
-- average; kl and kl_back, KL(this || other) and KL(other || this) in nats over the common ids, with
-- everything else as one bucket: a lower bound of the whole distributions' divergence.
--
-- The other run's views go by the name `other`. Ids must mean the same in both.
CREATE MACRO agreement() AS TABLE
WITH vocabulary AS (
    SELECT
        (SELECT list(bytes ORDER BY token_id) FROM tokens) AS here,
        (SELECT list(bytes ORDER BY token_id) FROM other.tokens) AS there
),
pairs AS (
    SELECT
        a.origin, a.k, a.widths, a.topk_ids, a.topk_logprobs, a.tail_logprob,
        b.k AS other_k, b.widths AS other_widths, b.topk_ids AS other_ids,
        b.topk_logprobs AS other_logprobs, b.tail_logprob AS other_tail,
        list_position(list_transform(
            list_zip(a.token_ids, b.token_ids), lambda pair: pair[1] IS NOT DISTINCT FROM pair[2]
        ), false) AS parted,
        least(a.n_tokens, b.n_tokens, COALESCE(parted, a.n_tokens)) AS shared
    FROM logits a
    JOIN other.logits b USING (sample_id, origin, rank)
    WHERE (
        SELECT CASE WHEN here IS NOT DISTINCT FROM there THEN true ELSE
            error('the two runs have different tokenizers: their ids cannot be compared')
        END::BOOLEAN
        FROM vocabulary
    )
),
positions AS (
    SELECT *, unnest(range(shared)) AS position FROM pairs
),
held AS (
    SELECT
        origin, position, entries_at(k, widths, position) AS span,
        entries_at(other_k, other_widths, position) AS other_span,
        list_select(topk_ids, span) AS ids,
        list_select(topk_logprobs, span) AS logprobs,
        list_select(other_ids, other_span) AS ids_there,
        list_select(other_logprobs, other_span) AS logprobs_there,
        exp(tail_logprob[position + 1]) AS tail,
        exp(other_tail[position + 1]) AS tail_there
    FROM positions
),
met AS (
    SELECT *, list_transform(ids, lambda id: list_position(ids_there, id)) AS place FROM held
),
common AS (
    SELECT
        origin, position, ids[1] = ids_there[1] AS same,
        list_select(
            logprobs, list_filter(range(1, len(place) + 1), lambda i: place[i] IS NOT NULL)
        ) AS p,
        list_select(logprobs_there, list_filter(place, lambda i: i IS NOT NULL)) AS q,
        tail + list_sum(list_transform(logprobs, lambda l: exp(l)))
            - COALESCE(list_sum(list_transform(p, lambda l: exp(l))), 0) AS rest,
        tail_there + list_sum(list_transform(logprobs_there, lambda l: exp(l)))
            - COALESCE(list_sum(list_transform(q, lambda l: exp(l))), 0) AS rest_there
    FROM met
),
compared AS (
    SELECT
        origin, position, same, len(p) AS n_common, list_zip(p, q) AS pq,
        greatest(rest, 1e-9) AS p_rest, greatest(rest_there, 1e-9) AS q_rest
    FROM common
)
SELECT
    origin, position, count(*) AS n,
    avg(same::INTEGER) AS same_top, avg(n_common) AS common,
    avg(COALESCE(list_sum(list_transform(pq, lambda l: exp(l[1]) * (l[1] - l[2]))), 0)
        + p_rest * ln(p_rest / q_rest)) AS kl,
    avg(COALESCE(list_sum(list_transform(pq, lambda l: exp(l[2]) * (l[2] - l[1]))), 0)
        + q_rest * ln(q_rest / p_rest)) AS kl_back
FROM compared
GROUP BY GROUPING SETS ((origin, position), (origin))
ORDER BY origin, position NULLS FIRST;
