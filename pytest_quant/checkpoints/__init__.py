"""Quantized checkpoints: made once, kept with a record of what they were made from, found again."""
