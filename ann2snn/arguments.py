"""The command lines of the programs that have no flag table: arguments by argparse, refusals in one line."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from typing import NoReturn

from .errors import UserError, one_line
from .files.flagfile import found, shipped_ones
from .files.plain import read_text
from .output import unbreakable_output

LONGEST_FILE = 1 << 20  # bytes of a file of arguments


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would exit. With `fromfile_prefix_chars="@"` it reads @FILE, several arguments a
    line and # comments; a file of config/ is the package's own where the working directory has none."""

    def __init__(self, prog: str | None, description: str | None, **options: object) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, formatter_class=layout, allow_abbrev=False, **options)

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return arg_line.partition("#")[0].split()

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        arguments = sys.argv[1:] if args is None else list(args)
        if not self.fromfile_prefix_chars:
            return super().parse_args(arguments, namespace)
        files = [index for index, argument in enumerate(arguments) if argument[:1] in self.fromfile_prefix_chars]
        for index in files:
            arguments[index] = arguments[index][0] + _readable(arguments[index][1:])
        try:
            given = super().parse_args(arguments, namespace)
        except (RecursionError, UnicodeDecodeError):
            raise UserError("a file of arguments names itself, or one that is no text: correct its @ lines") from None
        for line in shipped_ones([arguments[index][1:] for index in files]):
            print(line)
        return given


def _readable(name: str) -> str:
    """Where this file of arguments lies, after a look at it. Raises UserError."""
    path = found(name)
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


def answered(main: Callable[[], int | None]) -> int:
    """Run `main`; its exit code, 0 for None. Bad input is one line on the standard error stream, and code 2."""
    with unbreakable_output():
        try:
            return main() or 0
        except UserError as error:
            print(f"error: {one_line(str(error))}", file=sys.stderr)
            return 2
