"""Reading the command line by the one table of flags: values, `--help`, and refusals in one line."""

from __future__ import annotations

import difflib
import math
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags

from ..config import LIMITS, ImageSize, require
from ..errors import UserError, one_line, show
from ..files.flagfile import check_arguments, shipped_ones
from ..output import unbreakable_output
from .parsing import FLAGS
from .table import GROUPS, HELP, define

__all__ = ["FLAGS", "GROUPS", "HELP", "define", "given", "help_text", "require_action", "run_script", "written"]


def given(name: str) -> bool:
    """Whether the flag was set on the command line or in a flagfile."""
    return bool(FLAGS[name].present)


def require_action(chosen: bool, flag: str) -> None:
    """Raise UserError when a script is called without the flag that makes it act."""
    if not chosen:
        raise UserError(f"nothing to do: add --{flag} (the flagfiles under config/ do), or see --help")


def run_script(
    main: Callable[[], int | None],
    introduction: str,
    worker: Sequence[str] | None = None,
    arguments: Sequence[str] | None = None,
) -> NoReturn:
    """Parse the command line and run `main`, in as many processes as asked for; see `launch.run` for the exit codes.

    introduction: what --help begins with. worker: what Python is started with for each of several processes, and
    arguments: the command line without the program's name; None: those of this process.

    Whatever takes long to import is imported after the parsing, so that --help and a typo are answered at once.
    """
    worker = sys.argv if worker is None else worker
    with unbreakable_output():
        if "train" not in FLAGS:
            define()
        argv = ["ann2snn", *(sys.argv[1:] if arguments is None else arguments)]
        _parse(argv, introduction)
        from ..distributed import launch

        def start() -> int | None:
            if os.environ.get("RANK", "0") == "0":
                for line in shipped_ones(check_arguments(argv)):
                    print(line)
            return main()

        sys.exit(launch.run(start, lambda: launch.process_count(FLAGS.nproc, FLAGS.parallel, FLAGS.device), worker))


def _parse(argv: list[str], introduction: str = "") -> list[str]:
    if {"--help", "-h", "--helpfull", "--helpshort"} & set(argv):
        show(help_text(introduction))
        sys.exit(0)
    try:
        words = FLAGS(argv)
        require(len(words) < 2, f"unexpected argument {words[-1][:80]!r}: flags start with --")
        _check_values()
    except (flags.Error, ValueError) as error:  # absl's own refusals are of both kinds, UserError is of the second
        print(f"error: {one_line(_message(error))}", file=sys.stderr)
        sys.exit(2)
    return words


MAY_BE_EMPTY = ("attn", "corrections")  # lists of what a network has
LONGEST_PATH, LONGEST_NAME = 4000, 255  # bytes; beyond these the system calls fail in ways of their own


def _check_values() -> None:
    """Raise UserError for numbers that nothing can be done with, and for texts that no path can be."""
    for name, flag in FLAGS.flag_values_dict().items():
        if isinstance(flag, str):
            encoded = flag.encode("utf-8", "surrogatepass")
            long = len(encoded) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in encoded.split(b"/"))
            require(not long, f"--{name}={flag}: too long; a path has at most {LONGEST_PATH} bytes")
        empty = flag in ("", []) and flag != FLAGS[name].default and name not in MAY_BE_EMPTY
        require(not empty or not given(name), f"--{name}=: is empty; give a value or drop the flag")
        if isinstance(flag, float):
            require(math.isfinite(flag), f"--{name}={flag}: must be a finite number")
        if isinstance(flag, ImageSize):
            least, most = LIMITS[name]
            require(least <= min(flag) and max(flag) <= most, f"--{name}={flag}: use {least} to {most}")
        if type(flag) is int:
            least, most = LIMITS.get(name, (-(2**53), 2**53))
            require(least <= flag <= most, f"--{name}={flag}: use {least} to {most}")


def help_text(introduction: str) -> str:
    """The script's docstring and the table of all flags, by group, with their defaults."""
    lines = [introduction.strip(), "", "--flagfile=FILE reads flags from a file, one a line; later ones win."]
    lines += [
        "A flag that may be repeated (--ch_mult, --attn) lists its values; those of the last source replace those of"
    ]
    lines += ["sources before it: --flagfile=FILE --ch_mult=1 --ch_mult=4 has two levels, whatever FILE says."]
    for title, names in HELP.items():
        lines += ["", f"{title}:"]
        for name in names:
            flag = FLAGS[name]
            shown = f"--[no]{name}" if flag.boolean else f"--{name}"
            default = "" if flag.default in (None, "", []) else f" (default {written(flag.default)})"
            words = f"{shown}: {flag.help}{default}".split()
            text = " ".join(word.replace("|", " | ") if len(word) > 94 else word for word in words)  # a long choice
            lines += textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


def written(value: object) -> str:
    """A flag's value as it is written on a command line."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _message(error: Exception) -> str:
    if isinstance(error, flags.UnrecognizedFlagError):
        near = difflib.get_close_matches(error.flagname, list(FLAGS), n=1)
        hint = f"; did you mean --{near[0]}?" if near else "; --help lists all flags"
        return f"unknown flag --{error.flagname}{hint}"
    return str(error)
