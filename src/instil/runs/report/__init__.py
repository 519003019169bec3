"""The report of a run: its data, its page, its pictures."""
