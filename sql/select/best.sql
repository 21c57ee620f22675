-- The teacher's best.
rank
