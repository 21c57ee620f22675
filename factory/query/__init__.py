"""SQL over a run: its views, the fence for SQL from outside, questions by name, answers."""
