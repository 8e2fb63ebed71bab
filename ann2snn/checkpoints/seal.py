"""The seal of a checkpoint: a hash of its content, and the test whether a file has lost or changed bytes.

torch's reader does not look at the CRCs of the zip it reads: a bit that flips inside a tensor passes unseen.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import zipfile
import zlib

import torch
from torch import Tensor

from ..errors import UserError
from ..files.zipped import members

HASH = "hash"  # the entry of a checkpoint that holds its `content_hash`
SHARING = 16  # times its size a file's content may be hashed; more, and it refers to the same data again and again
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype)
_UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OverflowError)
_ZIP_START, _ZIP_END, _ZIP_END_BYTES = b"PK\x03\x04", b"PK\x05\x06", 22
_FOLDER = 0x10  # attribute of a zip's record
_BLOCK = 1 << 20
_TOKEN = 16  # bytes of budget that every value costs besides its text


class DamageError(UserError):
    """A file is not as it was written."""


def content_hash(payload: dict, budget: int | None = None) -> str:
    """`sha256:…` of everything in `payload` but its own entry "hash"; 0.6 s per GB on one core with SHA instructions.

    Independent of how the file is laid out, of the order of dict entries, and of the tensors' device and strides.
    Tensors enter by name, dtype, shape and bytes, plain values by type and repr, all with their lengths, so that
    different contents never spell the same text. Lists, tuples and dicts count as such, whatever their subclass.

    budget: bytes to hash at most; every value counts as some bytes more than its text.

    Raises TypeError for what is neither a strided tensor nor a plain value, ValueError beyond the budget and for a
    tensor larger than its storage.
    """
    walk = _Walk(budget)
    walk.visit({key: value for key, value in payload.items() if key != HASH})
    return f"sha256:{walk.digest.hexdigest()}"


class _Walk:
    def __init__(self, budget: int | None) -> None:
        self.digest, self.budget = hashlib.sha256(), budget

    def visit(self, value: object) -> None:
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, dict):
            self._token("dict", str(len(value)))
            for key in sorted(value, key=_order):
                self.visit(key)
                self.visit(value[key])
        elif isinstance(value, list | tuple):
            self._token("list" if isinstance(value, list) else "tuple", str(len(value)))
            for item in value:
                self.visit(item)
        elif type(value) in _PLAIN:
            self._token(type(value).__name__, repr(value))
        else:
            raise TypeError(f"{type(value).__name__} is neither a tensor nor a plain value")

    def _token(self, kind: str, text: str) -> None:
        data = text.encode()
        self._spend(_TOKEN + len(data))
        self.digest.update(b"%s %d " % (kind.encode(), len(data)))
        self.digest.update(data)

    def _tensor(self, tensor: Tensor) -> None:
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise TypeError(f"a {tensor.layout} tensor on {tensor.device} has no plain bytes")
        size = tensor.numel() * tensor.element_size()
        if size > tensor.untyped_storage().nbytes():  # expanded: copying it may take any amount of memory
            raise ValueError(f"a tensor of shape {list(tensor.shape)} is larger than its storage")
        self._spend(size)
        self._token("tensor", f"{tensor.dtype} {list(tensor.shape)}")
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        self.digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)

    def _spend(self, size: int) -> None:
        if self.budget is not None:
            self.budget -= size
            if self.budget < 0:
                raise ValueError("it refers to the same data again and again")


def _order(key: object) -> tuple[str, str]:
    if type(key) not in _PLAIN:
        raise TypeError(f"a dict entry is named by a {type(key).__name__}")
    return type(key).__name__, repr(key)


def verify(payload: dict, path: str | os.PathLike) -> None:
    """Check what was read from `path` against its hash, or, if it carries none, the file against its CRCs.

    Raises DamageError where they disagree, UserError where the content cannot be hashed.
    """
    if HASH not in payload:
        if is_damaged(path):
            raise DamageError(f"refusing {path}: its records do not match their checksums: the file is damaged")
        return
    stored = payload[HASH]
    try:
        actual_hash = content_hash(payload, budget=SHARING * os.path.getsize(path))
    except (TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise UserError(f"refusing {path}: its content cannot be checked ({error})") from None
    if not isinstance(stored, str) or stored != actual_hash:
        raise DamageError(f"refusing {path}: its content does not match its hash: the file is damaged")


def is_damaged(path: str | os.PathLike) -> bool:
    """Whether a file that was torch's zip has lost or changed bytes: blank, cut short, or a record fails its CRC.

    Foreign files are not damaged ones. The CRCs cost about 0.3 s per GB.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(_BLOCK)
            if not any(start):  # empty, or zeros as some file systems leave them after a power cut
                return True
            file.seek(-min(_ZIP_END_BYTES, os.fstat(file.fileno()).st_size), os.SEEK_END)
            if not start.startswith(_ZIP_START) and not file.read().startswith(_ZIP_END):
                return False
            with zipfile.ZipFile(file) as archive:
                _read_whole(archive, os.fstat(file.fileno()).st_size)
                torchs = any(name.endswith("/data.pkl") for name in archive.namelist())
            if torchs:  # zipfile forgives more in the table of contents than they do
                members(file)
                torch._C.PyTorchFileReader(os.fspath(path))
        return False
    except _UNREADABLE:
        return True
    except OSError as error:
        return error.errno in (errno.EIO, errno.EINVAL)  # a bad sector; a directory that points before the file


def _read_whole(archive: zipfile.ZipFile, limit: int) -> None:
    """Read every record to its end, where zipfile compares the CRC. Raises one of _UNREADABLE."""
    for record in archive.infolist():
        if record.external_attr & _FOLDER and record.file_size:  # torch would leave the tensor unread
            raise zipfile.BadZipFile("a record with content is called a folder")
        if record.CRC == 0:  # torch can be told to write none
            continue
        with archive.open(record) as data:
            while block := data.read(_BLOCK):
                limit -= len(block)
                if limit < 0:  # compressed or overlapping: not torch's, and possibly a bomb
                    return
