-- The hypothesis ended by itself, not at the length limit.
NOT truncated
