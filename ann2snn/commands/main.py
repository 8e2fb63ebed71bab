"""The command `ann2snn`: finds the subcommand, and hands it the rest of the line."""

from __future__ import annotations

import difflib
import importlib
import sys

from .. import __version__
from ..errors import one_line, show
from ..output import unbreakable_output
from .table import COMMANDS

HELP = ("-h", "--help", "help")


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 2 for bad input, with one line on the standard error stream; scripts' commands exit themselves."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        return run(name, rest)
    with unbreakable_output():
        if name in HELP:
            show(listing())
        elif name == "--version":
            show(f"ann2snn {__version__}")
        else:
            near = difflib.get_close_matches(name[:80], COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else "ann2snn --help lists all"
            print(f"error: {one_line(f'no command {name[:80]!r}: {hint}')}", file=sys.stderr)
            return 2
    return 0


def run(name: str, arguments: list[str]) -> int:
    """Run a subcommand with these arguments; its exit code."""
    command = COMMANDS[name]
    module = importlib.import_module(f"..{command.module}", __package__)
    if not command.script:
        return module.main(arguments)
    from ..cli.flags import run_script

    introduction = module.__doc__ or ""
    for other, known in COMMANDS.items():
        if known.script:
            introduction = introduction.replace(f"python {known.script}", f"ann2snn {other}")
    return run_script(module.main, introduction, ["-m", "ann2snn", name, *arguments], arguments)


def listing() -> str:
    """All subcommands, a line each."""
    width = max(map(len, COMMANDS))
    lines = ["usage: ann2snn COMMAND [--help] …", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<{width}}  {command.summary}" + f" ({command.script})" * bool(command.script))
    return "\n".join([*lines, "", "ann2snn COMMAND --help explains one; ann2snn --version."])
