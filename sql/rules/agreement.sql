-- The target resembles the other candidates of its sample: mean sentence chrF of $min or more, of 100.
-- No value is published; of a beam's 4 candidates of 29,000 captions, one in a thousand is below 40.
-- $min = 40.0
agreement >= $min
