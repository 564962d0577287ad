"""What is kept: arrays and rows, never a model."""
