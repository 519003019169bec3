"""One decoder described by a small spec, and the ways weights get into it and out again."""
