"""Side by side with others: what is measured, how, and against whom. `benchmarks/README.md` says how to run it."""
