-- The target does not say the same again: no share of sql/signals/repetition.sql is over its limit in
-- Gopher's table, times $max. That table is of texts of 50 words and more. In a shorter target one
-- pair of words that stands there twice can be over it, so below $short words the limit is times
-- $short_max.
-- $max = 1.0
-- $short = 50
-- $short_max = 2.0
repetition <= CASE WHEN n_words_target < $short THEN $short_max ELSE $max END
