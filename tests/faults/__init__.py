"""What goes wrong outside, and must not go wrong here."""
