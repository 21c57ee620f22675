-- Of its source's placeholders, tags and protected spans the target leaves out at most $max.
-- $max = 0
placeholders_missing <= $max
