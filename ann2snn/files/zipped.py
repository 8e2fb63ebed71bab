"""The table of a zip file from outside (checkpoints, npz), checked before a member is read."""

from __future__ import annotations

import os
import zipfile
from typing import BinaryIO

MOST_MEMBERS = 100_000
MOST_TABLE = 16 << 20  # bytes of the central directory: parsing takes some twenty times as much memory
_END, _END_SIZE, _MOST_COMMENT = b"PK\5\6", 22, 1 << 16
_END64, _END64_SIZE, _LOCATOR, _LOCATOR_SIZE = b"PK\6\6", 56, b"PK\6\7", 20
ENCRYPTED = 1


def members(file: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """Name → entry of every member of an open zip file.

    Two readers may see different files in one zip: torch's believes offsets that Python's corrects, and does not tell
    capital letters. What is not the same for both is refused.

    Raises:
        ValueError: no zip, damaged or ambiguous, a table or a number of members out of proportion, a name twice, an
            encrypted member, or members that need more bytes than the file has (they overlap).
    """
    size = os.fstat(file.fileno()).st_size
    _check_end(file, size)
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise ValueError(f"no zip file ({error})") from None
    entries_by_name = {entry.filename: entry for entry in entries}
    if len(entries) > MOST_MEMBERS or len({name.lower() for name in entries_by_name}) != len(entries):
        raise ValueError("it has too many members, or two of one name")
    if any(entry.orig_filename != entry.filename or not entry.filename.isascii() for entry in entries):
        raise ValueError("a member's name is ambiguous")
    if any(entry.flag_bits & ENCRYPTED for entry in entries):
        raise ValueError("a member is encrypted")
    if sum(entry.compress_size for entry in entries) > size:
        raise ValueError("its members overlap")
    return entries_by_name


def _check_end(file: BinaryIO, size: int) -> None:
    """Raise ValueError unless the table (central directory) ends where its end record begins: APPNOTE.TXT, 4.3.14."""
    start = max(0, size - _END_SIZE - _MOST_COMMENT - _LOCATOR_SIZE - _END64_SIZE)
    file.seek(start)
    tail = file.read(size - start)
    end = tail.rfind(_END)
    if end < 0 or len(tail) != end + _END_SIZE + int.from_bytes(tail[end + 20 : end + 22], "little"):
        raise ValueError("it has no table of contents")
    table, offset = (int.from_bytes(tail[end + at : end + at + 4], "little") for at in (12, 16))
    if tail[max(0, end - _LOCATOR_SIZE) : end].startswith(_LOCATOR):
        locator = end - _LOCATOR_SIZE
        end = locator - _END64_SIZE
        pointer = int.from_bytes(tail[locator + 8 : locator + 16], "little")
        if end < 0 or tail[end : end + 4] != _END64 or pointer != start + end:
            raise ValueError("its end record is ambiguous")
        table, offset = (int.from_bytes(tail[end + at : end + at + 8], "little") for at in (40, 48))
    if table > MOST_TABLE or offset + table != start + end:
        raise ValueError("its table of contents is damaged or too large")
