"""Logs and reports of a run."""
