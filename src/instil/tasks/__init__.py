"""What is learnt: answers, or which of two answers is better; prepare and tune."""
