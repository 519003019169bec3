"""Scores without a judge, and the report of a run."""
