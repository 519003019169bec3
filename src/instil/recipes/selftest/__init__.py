"""Whether what is promised of every model holds of this one, on this machine."""
