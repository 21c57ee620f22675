-- The source is not nearly one of the test split.
NOT near_test
