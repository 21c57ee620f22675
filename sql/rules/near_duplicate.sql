-- No candidate of a sample that comes before is nearly the same pair of source and target.
NOT near_duplicate
