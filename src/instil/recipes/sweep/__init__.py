"""Several runs, and their table."""
