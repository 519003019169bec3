"""Texts that say nearly the same, found among a few or among millions."""
