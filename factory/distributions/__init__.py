"""Sparse distributions of a teacher: as engines tell them, as they are stored."""
