"""Read and write IDX, the array format of the MNIST family (unsigned bytes only)."""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import UserError
from ..files.plain import open_plain

UNSIGNED_BYTE = 0x08
MAX_DIMS = 4
MAX_BYTES = 256 * 2**20  # five times the largest file of the MNIST family
CHUNK = 2**20


def read_idx(path: str | os.PathLike) -> torch.Tensor:
    """Return the array in an IDX file, plain or gzip-compressed (`.gz`), as a uint8 tensor of its own shape.

    The header is checked before anything is read by it, and memory grows with the bytes that are really there, so a
    lying header cannot exhaust it.

    Raises:
        UserError: the file is missing, damaged, too large, or not an IDX file of unsigned bytes.
    """
    path = Path(path)
    try:
        with open_plain(path, 2 * MAX_BYTES) as packed, _unpacked(packed, path) as file:
            shape = _read_header(file, path)
            data = _read_at_most(file, math.prod(shape) + 1)  # one more, to notice trailing bytes
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read IDX file {path}: {error}; fetch the file again") from error
    if len(data) != math.prod(shape):
        raise UserError(f"IDX file {path} does not hold the {math.prod(shape)} bytes it announces; fetch it again")
    return torch.frombuffer(data, dtype=torch.uint8).view(shape)


def _unpacked(file: BinaryIO, path: Path) -> gzip.GzipFile | BinaryIO:
    return gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file


def write_idx(array: torch.Tensor, path: str | os.PathLike) -> None:
    """Write a uint8 tensor (1 to 4 dimensions, not empty) as gzip-compressed IDX, without a time stamp in the file.

    Raises:
        ValueError: another dtype, no element, or too many dimensions.
    """
    if array.dtype != torch.uint8 or not 1 <= array.dim() <= MAX_DIMS or array.numel() == 0:
        raise ValueError(f"IDX needs a non-empty uint8 tensor of 1 to {MAX_DIMS} dimensions")
    header = bytes([0, 0, UNSIGNED_BYTE, array.dim()]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    packed = gzip.compress(header + array.cpu().contiguous().numpy().tobytes(), compresslevel=9, mtime=0)
    Path(path).write_bytes(packed)


def _read_header(file: gzip.GzipFile | BinaryIO, path: Path) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) != 4 or magic[:2] != b"\0\0" or magic[2] != UNSIGNED_BYTE or not 1 <= magic[3] <= MAX_DIMS:
        raise UserError(f"{path} is not an IDX file of unsigned bytes; fetch it again")
    sizes = file.read(4 * magic[3])
    if len(sizes) != 4 * magic[3]:
        raise UserError(f"IDX file {path} ends inside its header; fetch it again")
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    if not 0 < math.prod(shape) <= MAX_BYTES:
        raise UserError(f"IDX file {path} announces shape {shape}, outside 1 to {MAX_BYTES} bytes; fetch it again")
    return shape


def _read_at_most(file: gzip.GzipFile | BinaryIO, count: int) -> bytearray:
    data = bytearray()
    while len(data) < count and (chunk := file.read(min(CHUNK, count - len(data)))):
        data += chunk
    return data
