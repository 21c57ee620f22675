-- The rows of the run, in file order, with their ids.
SELECT
    i.sample_id, r.split, r.source, r.gold, coalesce(i.gold_rank <= $visible, false) AS gold_visible,
    r.prompt, r.n_prompt_tokens, r.meta, r.prompt_ids, r.prompt_hash, r.row
FROM raw AS r
JOIN identified AS i ON r.split = i.split AND r.row = i.row
