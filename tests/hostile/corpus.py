"""Malicious and malformed files, built where a test wants them; nothing binary is kept in the repository."""

from __future__ import annotations

import functools
import io
import os
import pickle
import socket
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from ann2snn.checkpoints import checkpoint
from ann2snn.checkpoints.reference import TABLE
from tests.helpers import random_ann

ESCAPE = "\x1b[2J\nfake: all is well"


class Touch:
    """Pickles into a call that creates `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch '{self.marker}'",))


class Hiding(OrderedDict):
    """Pickles into an OrderedDict whose attributes hide its methods."""

    def __reduce__(self):
        return (OrderedDict, (), {"items": 3, "get": 3, "keys": 3, "values": 3}, None, iter(dict.items(self)))


def payload(**changes: object) -> dict:
    """The content of a small valid checkpoint."""
    ann = random_ann(in_channels=1).float()
    config = {"unet": ann.config.to_dict(), "diffusion": ann.diffusion.to_dict(), "train": {"seed": 0}}
    state = {name: value.clone() for name, value in ann.state_dict().items()}
    whole = {"kind": "ann", "format": 1, "net_model": state, "ema_model": state, "config": config, "step": 3}
    return whole | changes


def save_valid(path: Path) -> Path:
    checkpoint.save(path, payload())
    return path


def with_entry(name: str, value: object) -> dict:
    """The payload with one entry of its weights replaced."""
    whole = payload()
    return whole | {"ema_model": whole["ema_model"] | {name: value}}


def with_config(group: str, **changes: object) -> dict:
    whole = payload()
    return whole | {"config": whole["config"] | {group: whole["config"][group] | changes}}


def laughs(kind: type, levels: int = 45) -> object:
    """A list or tuple that holds the one before twice over: 2^levels values in some hundred bytes."""
    value: object = kind(["ha"])
    for _ in range(levels):
        value = kind([value, value])
    return value


def repacked(path: Path, edit: Callable[[str, bytes], bytes] = lambda _, data: data, *extra: tuple, **how) -> Path:
    """Write the zip at `path` anew, with edited members and extra (name, bytes) ones."""
    with zipfile.ZipFile(path) as archive:
        content = [(member.filename, archive.read(member)) for member in archive.infolist()]
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, data in content:
            archive.writestr(name, edit(name, data))
        for name, data in extra:
            archive.writestr(name, data)
    return path


def crafted(path: Path, program: bytes, records: dict[str, bytes] | None = None) -> Path:
    """A checkpoint whose pickle is `program`."""
    with zipfile.ZipFile(path, "w") as archive:
        members = {"data.pkl": program, "byteorder": b"little", "version": b"3\n"} | (records or {})
        for name, data in members.items():
            archive.writestr(f"x/{name}", data)
    return path


def _entry(function: bytes, argument: bytes) -> bytes:
    """A pickle of {"ema_model": function(argument)}."""
    return b"\x80\x02}X\x09\x00\x00\x00ema_modelc" + function + argument + b"\x85Rs."


def _endless_key() -> bytes:
    """A pickle of a dictionary whose key is a tuple of 2^45 values in 45 levels: hashing it never ends."""
    levels = (b"h%c\x86q%c" % (level, level + 1) for level in range(45))  # BINGET, TUPLE2, BINPUT
    return b"\x80\x02})q\0" + b"".join(levels) + b"K\x01s."


LONG_INTEGER = b"\x8a\x05" + (10**11).to_bytes(5, "little")


def _storage_of_another_size(path: Path) -> Path:
    torch.save(payload(x_T=torch.zeros(1000)), path)  # BININT2 1000 twice: elements of the storage, and of the tensor
    return repacked(path, lambda name, data: data.replace(struct.pack("<cH", b"M", 1000), b"J\x00\xe1\xf5\x05"))


def _overlapping(path: Path) -> Path:
    """Every member of the table points at the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data/0", bytes(1 << 20))
        first = archive.infolist()[0]
        for index in range(1, 2000):
            twin = zipfile.ZipInfo(f"x/data/{index}")
            twin.file_size = twin.compress_size = first.file_size
            twin.header_offset, twin.CRC = first.header_offset, first.CRC
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
    return path


def _two_tables(path: Path, marker: Path) -> Path:
    """A zip64 whose locator points at one table while another lies where it should: readers disagree on the content."""
    torch.save(payload(note=Touch(marker)), path)
    harmful, harmless = path.read_bytes(), save_valid(path).read_bytes()
    end = harmless.rfind(b"PK\6\7")
    locator = harmless[end : end + 8] + struct.pack("<Q", harmful.rfind(b"PK\6\6")) + harmless[end + 16 : end + 20]
    shifted = harmless[: end - 8] + struct.pack("<Q", 0) + locator + harmless[end + 20 :]
    path.write_bytes(harmful + shifted)
    return path


def _torchscript(path: Path) -> Path:
    torch.jit.script(torch.nn.ReLU()).save(path)
    return path


def _tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("storages")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"\0\0\0\0"))
    return path


def _saved(content: Callable[[], object], **how) -> Callable[[Path, Path], Path]:
    def build(path: Path, marker: Path) -> Path:
        torch.save(content(), path, **how)
        return path

    return build


def _aliased() -> dict:
    shared = torch.zeros(64, 64)
    return payload(ema_model={f"entry{index}": shared for index in range(5000)})


TALL = (4096, 0, 1, 1, 1)
FSDDIM = {"conv_in__weight": (4096, 1, 0, 3, 1), "downs__0__0__bias": (1,), "downs__0__1__weight": TALL}


def _empty(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Entries of these shapes, without any numbers where one of the sizes is 0; names with __ for dots."""
    return {name.replace("__", "."): torch.ones(shape) for name, shape in shapes.items()}


def _sddpm(**shapes: tuple[int, ...]) -> dict:
    """A published file of a few entries that describe a network."""
    known = {"conv_identity__weight": (1,), "conv__weight": (4096, 1, 0, 3), TABLE.replace(".", "__"): (1000, 0)}
    return {"net_model": _empty(**known, **shapes)}


#: Name → builder(path, marker). None of these may load; the marker is created if code in the file runs.
CHECKPOINTS: dict[str, Callable[[Path, Path], Path]] = {
    "command": lambda p, m: _saved(lambda: payload(note=Touch(m)))(p, m),
    "command in a legacy file": lambda p, m: _saved(
        lambda: payload(note=Touch(m)), _use_new_zipfile_serialization=False
    )(p, m),
    "command in a bare pickle": lambda p, m: p.write_bytes(pickle.dumps({"ema_model": Touch(m)})) and p,
    "memory by bytearray": lambda p, m: crafted(p, _entry(b"__builtin__\nbytearray\n", LONG_INTEGER)),
    "memory by storage": lambda p, m: crafted(p, _entry(b"torch.storage\nUntypedStorage\n", LONG_INTEGER)),
    "memory by tensor": lambda p, m: crafted(p, _entry(b"torch\nTensor\n", LONG_INTEGER)),
    "expanded": _saved(lambda: with_entry("head.weight", torch.zeros(1).expand(10**6, 10**6))),
    "expanded elsewhere": _saved(lambda: payload(x_T=torch.zeros(1).expand(10**6, 10**6))),
    "one tensor for all": _saved(_aliased),
    "storage of another size": lambda p, m: _storage_of_another_size(p),
    "billion laughs": _saved(lambda: with_config("unet", ch=laughs(list))),
    "billion laughs as step": _saved(lambda: payload(step=laughs(list))),
    "billion laughs as name": lambda p, m: crafted(p, _endless_key()),
    "deep": _saved(lambda: payload(note=functools.reduce(lambda inner, _: [inner], range(80), []))),
    "hidden methods": _saved(lambda: payload(ema_model=Hiding(payload()["ema_model"]), config=Hiding(a=1))),
    "packed": lambda p, m: repacked(save_valid(p), compression=zipfile.ZIP_DEFLATED),
    "bomb": lambda p, m: repacked(
        save_valid(p), lambda n, d: d + bytes(1 << 26) if n.endswith("pkl") else d, compression=zipfile.ZIP_DEFLATED
    ),
    "overlapping": lambda p, m: _overlapping(p),
    "endless table": lambda p, m: p.write_bytes(
        repacked(save_valid(p)).read_bytes()[:-10] + b"\xff\xff\xff\x7f" * 2 + b"\0\0"
    ),
    "one name twice": lambda p, m: repacked(save_valid(p), lambda _, d: d, ("archive/data.pkl", b"")),
    "two folders": lambda p, m: repacked(save_valid(p), lambda _, d: d, ("other/data.pkl", b"")),
    "names in capitals": lambda p, m: repacked(save_valid(p), lambda _, d: d, ("archive/DATA.PKL", b"")),
    "two tables": lambda p, m: _two_tables(p, m),
    "torchscript": lambda p, m: _torchscript(p),
    "tar": lambda p, m: _tar(p),
    "sparse": _saved(lambda: with_entry("head.weight", torch.zeros(2, 2).to_sparse())),
    "meta": _saved(lambda: with_entry("head.weight", torch.zeros(10**6, 10**6, device="meta"))),
    "complex": _saved(lambda: with_entry("head.bias", torch.zeros(8, dtype=torch.complex64))),
    "integers": _saved(lambda: with_entry("head.bias", torch.zeros(8, dtype=torch.int64))),
    "not a number": _saved(lambda: with_entry("head.bias", torch.full((8,), float("nan")))),
    "no dimensions": _saved(lambda: {"ema_model": {"head.weight": torch.zeros(())}}),
    "no channels": _saved(
        lambda: {
            "ema_model": {
                "head.weight": torch.zeros(0, 1, 3, 3),
                TABLE: torch.ones(9, 1),
            }
        }
    ),
    "huge network": _saved(
        lambda: with_config("unet", ch=4096, ch_mult=[64] * 4, num_res_blocks=16, image_size=64, norm_groups=1)
    ),
    "huge SDDPM": _saved(lambda: _sddpm(downblocks__0__conv2__weight=(64 * 4096, 0, 1, 1))),
    "impossible SDDPM": _saved(lambda: _sddpm(downblocks__0__conv2__weight=(10**15, 0, 1, 1))),
    "endless SDM": _saved(lambda: _sddpm(downblocks__0__conv2__tsmconv__weight=(4096, 0, 1, 1), conv__tsmp=TALL)),
    "endless FSDDIM": _saved(lambda: {"model_state_dict": _empty(**FSDDIM, pe=(10**9, 0))}),
    "impossible network": _saved(lambda: with_config("unet", ch=4096, ch_mult=[10**6] * 4)),
    "many diffusion steps": _saved(lambda: with_config("diffusion", diffusion_steps=10**15)),
    "tensor as setting": _saved(lambda: with_config("diffusion", beta_1=torch.tensor(1e-4))),
    "table as setting": _saved(lambda: with_config("train", dataset_type={"a": 1})),
    "config is a list": _saved(lambda: payload(config=[1, 2])),
    "config is nothing": _saved(lambda: payload(config=None)),
    "config of lists": _saved(lambda: payload(config={"unet": [], "diffusion": []})),
    "path as stage": _saved(lambda: payload(stage="../../../outside")),
    "identity is a list": _saved(lambda: payload(identity=[1])),
    "step is vast": _saved(lambda: payload(step=10**5000)),
    "terminal commands": _saved(lambda: with_entry(ESCAPE, torch.zeros(1))),
    "empty": lambda p, m: p.write_bytes(b"") or p,
    "zeros": lambda p, m: p.write_bytes(bytes(5000)) and p,
}


def special_files(folder: Path, ending: str) -> dict[str, Path]:
    """Names that are no plain files, or that no memory holds: {what it is: path}."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {what: folder / f"{what}{ending}" for what in ("pipe", "link", "device", "loop", "folder", "sparse")}
    os.mkfifo(found["pipe"])
    found["link"].symlink_to(folder / "nowhere")
    found["device"].symlink_to("/dev/zero")
    found["loop"].symlink_to(found["loop"])
    found["folder"].mkdir()
    with open(found["sparse"], "wb") as file:
        file.truncate(1 << 40)
    found["socket"] = folder / f"s{ending}"
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder)  # a socket's path is short
    try:
        listener.bind(found["socket"].name)
    finally:
        os.chdir(here)
        listener.close()
    return found


# ---- arrays ---------------------------------------------------------------------------------------------------------


def stats_arrays(dim: int = 3) -> dict[str, np.ndarray]:
    return {"mu": np.zeros(dim), "sigma": np.eye(dim), "count": np.int64(9), "extractor": np.str_("net")}


def lying_npz(path: Path, name: str, shape: tuple[int, ...], descr: str = "<f8", data: bytes = b"") -> Path:
    """An npz that holds one array, whose header announces more than there is."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", stream.getvalue() + data)
    return path


def npz_of(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


class _Pickled:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch '{self.marker}'",))


#: Name → builder(path, marker) of files that are no statistics, no images and no rasters.
ARRAYS: dict[str, Callable[[Path, Path], Path]] = {
    "command": lambda p, m: npz_of(p, **stats_arrays() | {"mu": np.array([_Pickled(m)], dtype=object)}),
    "vast": lambda p, m: lying_npz(p, "mu", (10**12,)),
    "negative": lambda p, m: lying_npz(p, "mu", (-1, 10)),
    "wide text": lambda p, m: lying_npz(p, "extractor", (), "<U2147483000"),
    "bomb": lambda p, m: lying_npz(p, "mu", (1 << 25,), data=bytes(1 << 28)),
    "fields": lambda p, m: npz_of(p, **stats_arrays() | {"mu": np.zeros(3, [("a", "f8")])}),
    "dates": lambda p, m: npz_of(p, **stats_arrays() | {"mu": np.zeros(3, "M8[s]")}),
    "not a number": lambda p, m: npz_of(p, **stats_arrays() | {"mu": np.full(3, np.nan)}),
    "no dimensions": lambda p, m: npz_of(p, mu=np.float64(1), sigma=np.float64(1)),
    "bzip2": lambda p, m: repacked(npz_of(p, **stats_arrays()), compression=zipfile.ZIP_BZIP2),
    "a lone array": lambda p, m: np.save(p.with_suffix(".npy"), np.zeros(3)) or p.with_suffix(".npy").rename(p),
    "header": lambda p, m: repacked(npz_of(p, **stats_arrays()), lambda n, d: d.replace(b"'descr'", b"'de(((('")),
    "deep header": lambda p, m: lying_npz(p, "mu", (), "(" * 3000 + ")" * 3000),
    "empty": lambda p, m: p.write_bytes(b"") or p,
}


# ---- images ---------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, data: bytes = b"") -> bytes:
    """A grey PNG with this header, whatever its data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    parts = [*extra, chunk(b"IDAT", data or zlib.compress(bytes(1000))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(parts)


def encoded(kind: str, size: tuple[int, int] = (8, 8), **options) -> bytes:
    stream = io.BytesIO()
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint32).astype(np.uint8).reshape(size[1], size[0], 3)
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def text_bomb() -> bytes:
    """A PNG of one pixel with 3 GB of text in compressed chunks of 64 MB."""
    bomb = zlib.compress(bytes(1 << 26), 9)
    return png(1, 1, *(chunk(b"zTXt", b"k%d\0\0" % index + bomb) for index in range(48)))


def animated(kind: str, frames: int = 500) -> bytes:
    stream = io.BytesIO()
    pictures = [Image.new("RGB", (8, 8), (index % 256, index // 256, 0)) for index in range(frames)]
    pictures[0].save(stream, kind, save_all=True, append_images=pictures[1:])
    return stream.getvalue()


def profile_bomb() -> bytes:
    return png(1, 1, chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1 << 28), 9)))


#: Name → bytes of files that must be refused.
BROKEN_IMAGES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "header of 10^10 pixels": lambda: png(10**5, 10**5),
    "header of 10^8 pixels": lambda: png(10**4, 10**4),
    "no pixels": lambda: png(0, 0),
    "text bomb": text_bomb,
    "wrong checksum": lambda: encoded("PNG").replace(b"IDAT", b"IDAX"),
    "gif": lambda: encoded("GIF"),
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) = quit\n",
    "pgm that ends": lambda: b"P5 4000 4000 255\n",
    "tiff without data": lambda: encoded("TIFF")[:40],
}
#: Name → bytes of files that are odd, but whose first picture is one.
ODD_IMAGES: dict[str, Callable[[], bytes]] = {
    "many frames png": lambda: animated("PNG"),
    "many frames tiff": lambda: animated("TIFF", 300),
    "many frames webp": lambda: animated("WEBP", 100),
    "text": lambda: encoded("PNG", pnginfo=_comment()),
}


def _comment() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 1000, zip=True)
    return info
