"""Preference tuning: pairs of answers, of which one is better."""
