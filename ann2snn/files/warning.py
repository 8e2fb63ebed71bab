"""What users should know although the program goes on."""

import sys

from ..errors import one_line


def warn(message: str) -> None:
    """Print one line, `WARNING: message`, to stderr."""
    print(f"WARNING: {one_line(message)}", file=sys.stderr, flush=True)
