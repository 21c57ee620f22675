-- The target does not repeat its source, letter case and outer blanks apart.
NOT copy
