"""Arrays of an npz file from outside: a header is believed only within bounds, and before anything is allocated."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Mapping
from typing import IO

import numpy as np

from .plain import machine_memory, open_plain
from .zipped import members

MOST_DIMS = 8


def read_npz(
    path: str | os.PathLike, kinds: Mapping[str, str], max_bytes: int, rows: int | None = None
) -> dict[str, np.ndarray]:
    """The arrays named in `kinds` that the file has; others are not looked at.

    kinds: array name → the kinds of dtype allowed (numpy's letters: "f" float, "i" and "u" integer, "U" text).
    max_bytes: that all of them may have together, unpacked. rows: read no more than the first ones of each. A header
    that announces another number of bytes than its member holds is refused before the array is allocated; pickled
    objects always are.

    Raises:
        OSError: missing, unreadable, or no plain file.
        ValueError: no npz, damaged, too large, or an array of another kind. The text is one clause.
    """
    with open_plain(path) as file:
        entries = members(file)
        chosen = {name: entries[f"{name}.npy"] for name in kinds if f"{name}.npy" in entries}
        size = sum(entry.file_size for entry in chosen.values())
        if size > min(max_bytes, machine_memory()):
            raise ValueError(f"its arrays have {size} bytes, more than {min(max_bytes, machine_memory())}")
        if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in chosen.values()):
            raise ValueError("a member is packed in a way that numpy does not use")
        try:
            with zipfile.ZipFile(file) as archive, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numpy's, about headers of Python 2
                return {name: _read(archive, entry, kinds[name], name, rows) for name, entry in chosen.items()}
        except ValueError:
            raise
        except Exception as error:  # damage makes zipfile, zlib and numpy's header parser raise nearly anything
            raise ValueError(f"it is damaged ({type(error).__name__})") from None


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, kinds: str, name: str, rows: int | None) -> np.ndarray:
    with archive.open(entry) as member:
        shape, by_columns, dtype = _header(member)
        announced = member.tell() + dtype.itemsize * math.prod(shape)
    if dtype.kind not in kinds or dtype.hasobject:
        raise ValueError(f"array {name} is of {str(dtype)[:40]}")
    if len(shape) > MOST_DIMS or announced != entry.file_size:
        raise ValueError(f"array {name} announces {announced} bytes where {entry.file_size} are stored")
    with archive.open(entry) as member:
        if rows is not None and shape and (not by_columns or len(shape) == 1):
            _header(member)
            shape = (min(rows, shape[0]), *shape[1:])
            return np.frombuffer(member.read(dtype.itemsize * math.prod(shape)), dtype).reshape(shape)
        return np.lib.format.read_array(member, allow_pickle=False)


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns lie together, and dtype of a .npy stream, which is left at its data.

    Raises what numpy raises.
    """
    version = np.lib.format.read_magic(member)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"npy format {version} is unknown")
    return read(member)
