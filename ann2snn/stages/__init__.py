"""The stages of a run: one loop each, called by the scripts."""
