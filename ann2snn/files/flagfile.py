"""Flagfiles from outside, looked at before absl reads them: it would wait at a pipe and follow endless includes."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from ..errors import UserError
from .plain import read_text

DIRECTIVES = ("--flagfile", "-flagfile")
MOST_BYTES, MOST_LINE, MOST_FILES = 1 << 20, 10_000, 64
FOLDER = "config"  # of the repository, whose flagfiles the build copies into the package
PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = next((p for p in (PACKAGE / "flagfiles", PACKAGE.parent / FOLDER) if p.is_dir()), PACKAGE / "flagfiles")


def flagfile_path(name: str) -> str:
    """Where a flagfile is read from: `name`, or if there is nothing and that names a shipped one, from the package."""
    path = os.path.expanduser(name.strip())
    parts = PurePath(path).parts
    if os.path.lexists(path) or parts[:1] != (FOLDER,) or ".." in parts:
        return path
    shipped = os.path.join(SHIPPED, *parts[1:])
    return shipped if os.path.isfile(shipped) else path


def shipped_ones(files: Sequence[str]) -> list[str]:
    """Lines that say which of these files are the package's own, where that is not the `config` of this folder."""
    shipped_folder = os.path.join(os.path.realpath(SHIPPED), "")
    if os.path.join(os.path.realpath(FOLDER), "") == shipped_folder:
        return []
    return [f"flagfile: {path}, as shipped" for path in map(os.path.realpath, files) if path.startswith(shipped_folder)]


def check_arguments(arguments: Sequence[str]) -> list[str]:
    """Check a command line and the flagfiles it names, those named inside them too; where all of these lie.

    Raises UserError: control characters or bytes that are not UTF-8, a flagfile that is missing, no plain text file,
    too large, includes itself, or includes more than MOST_FILES others.
    """
    for argument in arguments:
        _check_text(argument, "the command line")
    read_paths: list[str] = []
    for name in _named(arguments):
        _check_file(name, (), read_paths)
    return read_paths


def expanded(arguments: Sequence[str]) -> list[tuple[int, str]]:
    """(source, argument) of a checked command line, with the lines of flagfiles in the place where they are named.

    source: 0 for the command line, and a number for each flagfile. In these, lines that are empty or start with # or
    // say nothing. After `--` nothing is a flag.
    """
    numbers = itertools.count(1)

    def lines_of(arguments: Sequence[str], source: int) -> Iterator[tuple[int, str]]:
        remaining = iter(arguments)
        for argument in remaining:
            directive, equals, name = argument.partition("=")
            if directive in DIRECTIVES:
                name = name if equals else next(remaining, "")
                if not name.strip():
                    raise UserError(f"{directive} names no file: give one")
                yield from lines_of(_lines(flagfile_path(name)), next(numbers))
            else:
                yield source, argument
                if argument == "--" and source == 0:
                    yield from ((source, word) for word in remaining)

    return list(lines_of(arguments, 0))


def _lines(name: str) -> list[str]:
    """What a flagfile says. Raises UserError."""
    lines = (line.strip() for line in _text(name).split("\n"))
    return [line for line in lines if line and not line.startswith(("#", "//"))]


def _named(arguments: Sequence[str]) -> Iterator[str]:
    """Names of flagfiles in arguments, or in the lines of a flagfile."""
    for index, argument in enumerate(arguments):
        directive, equals, name = argument.strip().partition("=")
        if directive in DIRECTIVES:
            name = name if equals else "".join(arguments[index + 1 : index + 2])
            if name.strip():
                yield flagfile_path(name)


def _check_file(name: str, including: tuple[str, ...], read_paths: list[str]) -> None:
    real = os.path.realpath(name)
    if real in including:
        raise UserError(f"flagfile {name} includes itself: remove a --flagfile line from it")
    read_paths.append(real)
    if len(read_paths) > MOST_FILES:
        raise UserError(f"flagfile {name} is the {len(read_paths)}th that is included: use at most {MOST_FILES}")
    lines = _text(name).split("\n")
    for number, line in enumerate(lines, 1):
        _check_text(line, f"line {number} of flagfile {name}")
    for inner in _named(lines):
        _check_file(inner, (*including, real), read_paths)


def _text(name: str) -> str:
    try:
        return read_text(name, MOST_BYTES)
    except OSError as error:
        raise UserError(f"cannot read flagfile {name}: {error.strerror or error}; correct the path") from None
    except ValueError:
        raise UserError(f"flagfile {name} is no text in UTF-8: give a file with one flag a line") from None


def _check_text(text: str, place: str) -> None:
    """Raise UserError for text that no flag is made of."""
    if len(text) > MOST_LINE:
        raise UserError(f"{place} has {len(text)} characters: use at most {MOST_LINE}")
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\r"), None)
    if bad is not None:
        raise UserError(f"{place} holds a control character, or bytes that are not UTF-8: {text[:80]!r}")
