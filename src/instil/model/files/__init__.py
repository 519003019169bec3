"""Model files of every form, in and out."""
