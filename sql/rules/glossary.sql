-- Of the glossary's entries that stand in its source, at most $max have no term in the target.
-- $max = 0
glossary_missing <= $max
