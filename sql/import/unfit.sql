-- Rows whose own columns are at fault, or contradict each other. $vocabulary: ids of the tokenizer;
-- $head: ids of the model's head; $k: entries a position that the run keeps, 0 for none; $ragged:
-- whether $k is the most of them; $ends: ids that end a target; $stops: whether strings end one too.
WITH told AS (
    SELECT
        *, len(token_ids) AS n,
        coalesce(topk_ids_widths, CASE WHEN k > 0 THEN list_resize([]::INTEGER[], len(token_ids), k::INTEGER) END) AS widths
    FROM offered
),
faults AS (
    SELECT "row", CASE
        WHEN sample_id IS NULL AND key IS NULL AND source IS NULL
            THEN fault(NULL, NULL, 'names no sample: give ' || $names)
        WHEN error IS NOT NULL AND (text IS NOT NULL OR token_ids IS NOT NULL)
            THEN fault(error, NULL, 'is an error beside a target: keep one of them')
        WHEN error IS NULL AND text IS NULL AND token_ids IS NULL
            THEN fault(NULL, NULL, 'holds no target: give text, token_ids, or the error that left none')
        WHEN finish_reason NOT IN ('stop', 'length', 'error') OR (finish_reason = 'error') <> (error IS NOT NULL)
            THEN fault(finish_reason, NULL, 'as finish_reason: give stop, length, or error with its reason in the column error')
        WHEN $ranked AND rank IS NULL AND error IS NULL
            THEN fault(NULL, NULL, 'has no rank, and other rows have one: give all rows a rank, or none')
        WHEN rank < 0 OR rank <> floor(rank) OR rank > 1e9
            THEN fault(NULL, rank, 'as rank: give a whole number from 0')
        WHEN NOT isfinite(score) THEN fault(NULL, score, 'as score: give a finite number')
        WHEN len(unlikely([coalesce(sum_logprob, 0), coalesce(mean_logprob, 0)])) > 0
            THEN fault(NULL, coalesce(nullif(greatest(sum_logprob, mean_logprob), 'inf'), sum_logprob), 'as a log-probability: give a finite natural logarithm, at most 0')
        WHEN n = 0 THEN fault(NULL, NULL, 'has no id in token_ids: leave the column out, or give an error')
        WHEN len(strange(token_ids, $vocabulary)) > 0
            THEN fault(NULL, strange(token_ids, $vocabulary)[1], 'in token_ids: is no id of the tokenizer, which has ' || $vocabulary || ': was another one used?')
        WHEN finish_reason = 'stop' AND n > 0 AND NOT $stops AND NOT list_contains($ends, token_ids[-1])
            THEN fault(NULL, token_ids[-1], 'ends token_ids, and is no end token (' || array_to_string($ends, ', ') || '): add it, take padding off, or give finish_reason length')
        WHEN token_ids IS NULL AND (token_logprobs IS NOT NULL OR topk_ids IS NOT NULL)
            THEN fault(NULL, NULL, 'has log-probabilities of tokens it does not name: give token_ids')
        WHEN len(token_logprobs) <> n
            THEN fault(NULL, len(token_logprobs), 'values in token_logprobs for ' || n || ' token_ids: give one each')
        WHEN len(unlikely(token_logprobs)) > 0
            THEN fault(NULL, unlikely(token_logprobs)[1], 'in token_logprobs: give finite natural logarithms, at most 0')
        WHEN abs(list_sum(token_logprobs) - sum_logprob) > 0.05 * n
            THEN fault(NULL, sum_logprob, 'as sum_logprob: token_logprobs add up to ' || round(list_sum(token_logprobs), 4))
        WHEN abs(coalesce(list_sum(token_logprobs), sum_logprob) / n - mean_logprob) > 0.05
            THEN fault(NULL, mean_logprob, 'as mean_logprob: over ' || n || ' tokens it is ' || round(coalesce(list_sum(token_logprobs), sum_logprob) / n, 4))
        WHEN (topk_ids IS NULL) <> (topk_logprobs IS NULL) OR (topk_ids IS NULL AND tail_logprob IS NOT NULL)
            THEN fault(NULL, NULL, 'has one of topk_ids and topk_logprobs: give both')
        WHEN topk_ids IS NULL THEN NULL
        WHEN token_logprobs IS NULL
            THEN fault(NULL, NULL, 'has no token_logprobs beside topk_ids: give those of the tokens themselves too')
        WHEN $k = 0
            THEN fault(NULL, NULL, 'has topk_ids, and logits.capture keeps none of them: set it to top_k or top_p, or leave the column out')
        WHEN widths IS NULL
            THEN fault(NULL, NULL, 'has flat topk_ids and no k: give k, or a list for each token')
        WHEN len(widths) <> n
            THEN fault(NULL, len(widths), 'lists in topk_ids for ' || n || ' token_ids: give one each')
        WHEN topk_ids_widths <> topk_logprobs_widths OR len(topk_ids) <> len(topk_logprobs)
            THEN fault(NULL, len(topk_logprobs), 'values in topk_logprobs for ' || len(topk_ids) || ' topk_ids, all told: give one each')
        WHEN len(topk_ids) <> list_sum(widths)
            THEN fault(NULL, len(topk_ids), 'values in topk_ids for ' || n || ' tokens with k = ' || k::INTEGER || ': give ' || list_sum(widths))
        WHEN $ragged AND list_max(widths) > $k
            THEN fault(NULL, list_max(widths), 'entries a position in topk_ids: logits.k keeps ' || $k || ': raise it')
        WHEN list_min(widths) < 1 OR NOT $ragged AND (list_min(widths) <> $k OR list_max(widths) <> $k)
            THEN fault(NULL, CASE WHEN list_min(widths) <> $k THEN list_min(widths) ELSE list_max(widths) END, 'entries at a position in topk_ids: logits keeps ' || $k || ': set logits.k, or capture to top_p where widths differ')
        WHEN len(strange(topk_ids, $head)) > 0
            THEN fault(NULL, strange(topk_ids, $head)[1], 'in topk_ids: is no id of the teacher, which has ' || $head || ': was another one used?')
        WHEN len(unlikely(topk_logprobs)) > 0
            THEN fault(NULL, unlikely(topk_logprobs)[1], 'in topk_logprobs: give finite natural logarithms, at most 0')
        WHEN len(tail_logprob) <> n
            THEN fault(NULL, len(tail_logprob), 'values in tail_logprob for ' || n || ' token_ids: give one each, or none')
        WHEN len(list_filter(tail_logprob, lambda p: p IS NULL OR p > 1e-4 OR isnan(p))) > 0
            THEN fault(NULL, list_max(tail_logprob), 'in tail_logprob: give natural logarithms, at most 0')
    END AS fault
    FROM told
)
SELECT "row", fault.word, fault.number, fault.remedy
FROM faults
WHERE fault IS NOT NULL
ORDER BY "row"
LIMIT 1
