-- Source and target have between $min and $max words each.
-- $min = 1
-- $max = 150
n_words_source BETWEEN $min AND $max AND n_words_target BETWEEN $min AND $max
