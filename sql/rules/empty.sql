-- The target is more than blanks.
NOT empty
