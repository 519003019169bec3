"""The mask microscope: every token of a row, and whether the model is trained to say it."""
