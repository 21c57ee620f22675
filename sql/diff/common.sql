-- Sources that both runs are to learn from, of the same id and the same text.
SELECT sample_id, h.source, h.prompt = t.prompt AS same_prompt
FROM samples h
JOIN other.samples t USING (sample_id, source)
WHERE h.split IN ('train', 'unlabeled') AND t.split IN ('train', 'unlabeled')
