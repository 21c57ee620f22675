"""The judge: signals of every candidate, rules over them, one or more targets for each source."""
