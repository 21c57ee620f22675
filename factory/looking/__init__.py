"""What a person sees of a run in the terminal: digest, sample, progress, differences, scores."""
