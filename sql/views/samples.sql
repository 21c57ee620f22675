-- A row is a source. gold is NULL where there is none; gold_visible says whether the student may
-- learn from it. meta holds the input row's other fields, as JSON.
CREATE VIEW samples AS
SELECT
    sample_id, split, source, gold, gold_visible, prompt, n_prompt_tokens, meta,
    prompt_ids, prompt_hash, "row"
FROM raw.samples;
