"""From rows as they lie in a file to examples and preference pairs: their shape, and what is wrong with one."""
