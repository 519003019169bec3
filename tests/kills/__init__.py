"""Runs that are killed at random moments, again and again, and end as runs that never were; `make kill-test`."""
