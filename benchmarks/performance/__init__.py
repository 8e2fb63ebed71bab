"""What `python -m benchmarks` measures, one duty a file: timing, networks, each group of rows, targets, tables."""
