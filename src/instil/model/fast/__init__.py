"""The same numbers with less work: matrix products, fused and recomputed steps, tied tables."""
