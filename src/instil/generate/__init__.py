"""Answers: sampling as values handed in, the engine that speaks ids, and whole splits answered."""
