"""Training and answering on a GPU: on one that is pretended, and, where there is one, on a real one."""
