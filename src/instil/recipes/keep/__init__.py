"""What a tuned model has lost and gained outside of its rows, and mixtures of it with its base that lose less."""
