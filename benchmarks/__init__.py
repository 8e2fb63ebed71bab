"""Commands that measure the toolchain and draw the figures of the documentation: `python -m benchmarks.NAME --help`."""
