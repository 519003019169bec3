"""Time and memory beforehand."""
