"""The commands, by what a person comes for. Each parses, calls the library, and prints."""
