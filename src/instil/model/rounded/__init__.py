"""Decoders whose linear layers hold rounded weights, for answering alone: in eight bits, or in bfloat16. Not exact."""
