-- The numbers of source and target match: (common + 1) / (different + 1) is $min or more.
-- $min = 1.0
number_match >= $min
