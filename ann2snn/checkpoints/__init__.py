"""Checkpoints: ours, and those of other programs."""
