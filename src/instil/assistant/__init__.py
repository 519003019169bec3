"""A model that answers, and the folder it leaves in."""
