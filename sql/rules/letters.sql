-- The target is written in letters: in at least $words of its words and $characters of its characters.
-- $words = 0.4
-- $characters = 0.5
letter_word_share >= $words AND letter_share >= $characters
