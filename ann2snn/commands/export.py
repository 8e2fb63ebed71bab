"""Write a network as a folder to hand on: ann2snn export logs/demo/converted_snn.pt net

OUT gets the weights as safetensors and the settings as JSON; `ann2snn.load` and every command read it. A name ending in
.pt makes a checkpoint instead. SNN_conversion.py --export adds a card of what was measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import Parser, exit_code_of


def parser() -> Parser:
    """The command line."""
    made = Parser("ann2snn export", __doc__)
    made.add_argument("network", metavar="NETWORK", help="a file, a folder, or the name of a network that ships")
    made.add_argument("out", metavar="OUT", type=Path, help="a new folder, or a new file ending in .pt")
    made.add_argument("--dtype", choices=("float32", "float64", "float16"), default="float32", help="of the weights")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 for bad input, with one line on the standard error stream."""
    return exit_code_of(lambda: _main(parser().read(arguments)))


def _main(given: argparse.Namespace) -> None:
    from .. import api  # what takes seconds to import is imported where it is used
    from ..checkpoints import shipped

    api.save(api.load(shipped.path_of(given.network)), given.out, dtype=given.dtype)
    print(f"{given.out}: the network; ann2snn.load reads it")
