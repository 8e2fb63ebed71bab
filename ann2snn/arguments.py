"""The command lines of the programs that have no flag table: arguments by argparse, refusals in one line."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from .errors import UserError, explained, one_line
from .files.flagfile import flagfile_path, shipped_ones
from .files.plain import read_text
from .output import unbreakable_output
from .signals import Stopped, stoppable

LONGEST_FILE = 1 << 20  # bytes of a file of arguments


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would exit. files: it reads @FILE, several arguments a line and # comments; a
    file of config/ is the package's own where the working directory has none."""

    def __init__(self, prog: str, description: str | None, files: bool = False) -> None:
        super().__init__(
            prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            fromfile_prefix_chars="@" if files else None,
            epilog="@FILE reads arguments from a file; later ones win." if files else None,
            allow_abbrev=False,
        )

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return arg_line.removeprefix("\ufeff").partition("#")[0].split()  # the mark that some editors put first

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def read(self, given: Sequence[str] | None) -> argparse.Namespace:
        """Parse these arguments; None: those of this process. Raises UserError."""
        arguments, files = [], []
        for argument in sys.argv[1:] if given is None else given:
            if self.fromfile_prefix_chars and argument.startswith(self.fromfile_prefix_chars):
                files.append(_readable(argument[1:]))
                argument = f"@{files[-1]}"
            arguments.append(argument)
        try:
            parsed = self.parse_args(arguments)
        except (RecursionError, UnicodeDecodeError):
            raise UserError("a file of arguments names itself, or one that is no text: correct its @ lines") from None
        for line in shipped_ones(files):
            print(line)
        return parsed


def _readable(name: str) -> str:
    """Where this file of arguments lies, after a look at it. Raises UserError."""
    path = flagfile_path(name)
    try:
        read_text(path, LONGEST_FILE)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise UserError(f"cannot read {name}: {reason}") from None
    return path


def need(package: str, extra: str) -> None:
    """Raise UserError where a package of this extra is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"package {package} is missing: pip install {package}, which ann2snn[{extra}] brings")


def exit_code_of(main: Callable[[], int | None]) -> int:
    """Run `main`; its exit code, 0 for None. A stopping signal ends it with 128 + its number.

    Bad input, a system that refuses and memory that ran out are one line on the standard error stream, and code 2.
    """
    with unbreakable_output():
        try:
            with stoppable():
                return main() or 0
        except Stopped as stop:
            print("stopped")
            return stop.exit_code
        except Exception as error:
            message = explained(error)
            if message is None:
                raise
            print(f"error: {one_line(message)}", file=sys.stderr)
            return 2
