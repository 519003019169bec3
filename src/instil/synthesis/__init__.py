"""Instruction data made with another language model."""
