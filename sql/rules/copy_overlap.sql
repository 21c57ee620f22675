-- Less than $below of the target's words stand in its source too, letter case apart.
-- $below = 0.5
copy_overlap < $below
