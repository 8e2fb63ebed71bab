"""Whether the packages are there that everything needs; asked before the first of them is imported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NEEDED = ("absl", "numpy", "scipy", "torch", "torchvision", "tqdm", "PIL")
CHECKOUT = Path(__file__).resolve().parents[1]


def require_installed() -> None:
    """Raise ImportError, or end a script with one line and exit code 2, where a package is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    cure = (
        "run `make install` once, then .venv/bin/python in place of python, or activate .venv"
        if (CHECKOUT / "Makefile").exists()
        else "install ann2snn again with pip, which brings them"
    )
    message = f"{sys.executable} has no {', '.join(missing)}: {cure}"
    if _by_script():
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(message)


def _by_script() -> bool:
    """Whether the command, one of the scripts beside the package, or `python -m ann2snn…`, is what runs."""
    started = Path(sys.argv[0] or ".") if sys.argv else Path(".")
    return started.name == "-m" or started.stem == "ann2snn" or started.resolve().parent == CHECKOUT
