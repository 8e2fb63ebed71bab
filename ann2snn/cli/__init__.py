"""The command line: flags, and what is built of them."""
