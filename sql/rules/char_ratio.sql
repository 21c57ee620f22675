-- The target has between $min and $max characters for each character of its source. Of use where
-- words are not parted by blanks, and length_ratio says nothing.
-- $min = 0.33
-- $max = 3.0
char_ratio BETWEEN $min AND $max
