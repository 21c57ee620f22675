"""From a row to the ids of its prompt, and from ids to text."""
