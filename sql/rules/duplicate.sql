-- No candidate with a smaller (sample_id, rank) has the same source and target.
NOT duplicate
