"""The data card: its tables with their queries, and where it no longer matches its run."""
