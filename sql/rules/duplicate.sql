-- No candidate with a smaller (sample_id, rank) has the same prompt and target.
NOT duplicate
