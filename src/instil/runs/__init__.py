"""The run folder: what lies in it, who it is, and its report."""
