-- The target has between $min and $max words for each word of its source.
-- $min = 0.5
-- $max = 2.0
length_ratio BETWEEN $min AND $max
