"""Bounds on a checkpoint from outside: before `torch.load` sees it, and before anything computes with the result."""

from __future__ import annotations

import os
import zipfile
from typing import BinaryIO

import torch
from torch import Tensor

from ..files.plain import machine_memory
from ..files.zipped import members
from .opcodes import follow

MOST_PROGRAM = 8 << 20  # bytes of data.pkl: a tensor takes some 200
MOST_DEPTH = 12
MOST_WEIGHT = 1 << 24  # values and characters of text, shared ones as often as they are met
DAMAGED = "it is truncated or not a torch checkpoint"


def check_archive(file: BinaryIO) -> None:
    """Check an open checkpoint of torch's zip format and leave it at its start; nothing is unpickled.

    The format stores its records unpacked, so that a file cannot unfold into more than it is.

    Raises:
        ValueError: another format, a packed record, TorchScript, or a pickle that `follow` refuses; one clause.
    """
    start = file.read(262)
    if start[:1] == b"\x80" or start[257:262] == b"ustar":
        raise ValueError(
            "it is in a format of torch before 1.6, which could execute code: where you trust it, load it in torch and "
            "save it again with torch.save"
        )
    if start[:4] != b"PK\3\4":
        raise ValueError(DAMAGED)
    try:
        entries = members(file)
    except ValueError:
        raise ValueError(DAMAGED) from None
    records = _records(entries)
    if "constants.pkl" in records:
        raise ValueError("it is a TorchScript program, not a checkpoint")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise ValueError("its records are packed, as those of a checkpoint never are")
    if "data.pkl" not in records or "version" not in records:
        raise ValueError(DAMAGED)
    sizes = {name: entry.file_size for name, entry in records.items()}
    if sizes["data.pkl"] > MOST_PROGRAM or sum(sizes.values()) > min(os.fstat(file.fileno()).st_size, machine_memory()):
        raise ValueError("it announces more than it holds, or than this machine's memory")
    try:
        with zipfile.ZipFile(file) as archive:
            program = archive.read(records["data.pkl"])
    except (zipfile.BadZipFile, OSError, EOFError, ValueError):
        raise ValueError(DAMAGED) from None
    follow(program, sizes)
    file.seek(0)


def _records(entries: dict[str, zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The members by their names inside the archive's one folder; none if they lie in several."""
    folders = {name.partition("/")[0] for name in entries}
    return {name.partition("/")[2]: entry for name, entry in entries.items()} if len(folders) == 1 else {}


def plain(payload: object) -> object:
    """A copy of a loaded payload made of dict, list, tuple, str, int, float, bool, None and dense CPU tensors alone.

    Tensors keep their memory, and lose hooks and gradients. A dense tensor is contiguous (or channels-last) and lies
    within its storage: an expanded one of 10^12 elements in a storage of one is refused before anything is computed.

    Raises:
        ValueError: anything else in it, or more of it than a checkpoint can need; one clause.
    """
    return _Copier().copy(payload, "the file", 0)


class _Copier:
    def __init__(self) -> None:
        self.weight = 0

    def copy(self, value: object, name: str, depth: int) -> object:
        """Raises ValueError."""
        self.weight += 1 + (len(value) if isinstance(value, str) else 0)
        if self.weight > MOST_WEIGHT or depth > MOST_DEPTH:
            raise ValueError("it is too large or too deep for a checkpoint's settings")
        if isinstance(value, Tensor):
            return _dense(value, name)
        if isinstance(value, dict):  # dict.items: a subclass from a file may carry attributes that hide its methods
            pairs = dict.items(value)
            return {self._key(key): self.copy(entry, str(key)[:80], depth + 1) for key, entry in pairs}
        if isinstance(value, (list, tuple)):  # torch.Size among them
            return (list if isinstance(value, list) else tuple)(self.copy(v, name, depth + 1) for v in value)
        if value is None or type(value) in (str, bool, float) or type(value) is int and abs(value) < 2**63:
            return value
        raise ValueError(f"entry {name!r} is neither a tensor nor a plain value")

    def _key(self, key: object) -> object:
        self.weight += len(key) if isinstance(key, str) else 1
        if type(key) is str or type(key) is int and abs(key) < 2**63:
            return key
        raise ValueError("it has keys that are neither names nor numbers")


def _dense(value: Tensor, name: str) -> Tensor:
    if value.layout != torch.strided or value.is_meta or value.is_quantized or value.device.type != "cpu":
        raise ValueError(f"entry {name!r} is not a dense tensor")
    value = value.detach()
    images = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    end = (value.storage_offset() + value.numel()) * value.element_size()
    if not (value.is_contiguous() or images) or end > value.untyped_storage().nbytes():
        raise ValueError(f"entry {name!r} is larger than its data")
    return value


def repeats_itself(tensors: list[Tensor]) -> bool:
    """Whether tensors have more bytes together than the memory they share: copies of them would outgrow the file."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(t.numel() * t.element_size() for t in tensors) > sum(storages.values())
