"""A run folder: what is logged and written there."""
