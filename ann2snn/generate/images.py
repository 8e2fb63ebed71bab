"""Generated images on disk: grids to look at, numbered files, and one array for FID tools."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor
from torchvision.utils import make_grid

from ..data.decode import decode_image, list_images
from ..data.image_set import ImageSet
from ..errors import UserError
from ..files.atomic import replacing, sync_folder
from ..files.npz import read_npz
from ..files.plain import open_plain
from ..files.zipped import members

NPZ_KEY = "arr_0"  # what guided-diffusion's evaluator reads
MOST_NPZ_BYTES = 2**36
INDEX_DIGITS = 6
_NUMBERED = re.compile(rf"([0-9]{{{INDEX_DIGITS}}})\.png")
_READ_AT_ONCE = 1024
_SET_BATCH = 64


def save_grid(images: torch.Tensor, path: str | os.PathLike, nrow: int) -> None:
    """Write uint8 images [N, C, H, W], C 1 or 3, as one PNG with `nrow` images to a line.

    The file appears whole or not at all; missing folders are made.

    Raises:
        ValueError: not uint8 [N, C, H, W], or no image.
        UserError: the file cannot be written.
    """
    _check(images)
    grid = make_grid(images.cpu(), nrow=nrow)
    _write(Path(path), lambda file: _to_pil(grid).save(file, format="PNG"))


def save_numbered(images: torch.Tensor, folder: str | os.PathLike, indices: Sequence[int]) -> None:
    """Write uint8 images [N, C, H, W], C 1 or 3, as PNG files named by their N indices, such as `000000.png`.

    Each file appears whole or not at all, so that a stopped run can tell by the names what is left to do. The folder is
    synchronized once, for all of them.

    Raises:
        ValueError: not uint8 [N, C, H, W], no image, or an index outside 0 to 999,999 (six digits keep names in order).
        UserError: a file cannot be written.
    """
    _check(images)
    if min(indices) < 0 or max(indices) >= 10**INDEX_DIGITS:
        raise ValueError(f"image indices {min(indices)} to {max(indices)} exceed {INDEX_DIGITS} digits")
    for index, image in zip(indices, images.cpu(), strict=True):
        picture = _to_pil(image)
        _write(image_path(folder, index), lambda file, picture=picture: picture.save(file, format="PNG"), settled=False)
    sync_folder(Path(folder))


class ImageWriter:
    """Writes numbered images in a thread of its own, so that whoever makes them does not wait for the disk.

    A context, at whose end everything is written. Raises what went wrong at the next `add`, or at the end.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self._folder, self._thread = folder, ThreadPoolExecutor(1, "images")
        self._running: Future | None = None

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:  # else another error is on its way
            self._finish()

    def add(self, images: torch.Tensor, indices: Sequence[int]) -> None:
        """uint8 images [N, C, H, W]; waits for those of the call before."""
        self._finish()
        self._running = self._thread.submit(save_numbered, images, self._folder, list(indices))

    def _finish(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()


def image_path(folder: str | os.PathLike, index: int) -> Path:
    """Where image `index` of a folder is."""
    return Path(folder, f"{index:0{INDEX_DIGITS}}.png")


def index_of(name: str) -> int | None:
    """The index that a file's name says, as `image_path` writes it; None for another name."""
    match = _NUMBERED.fullmatch(name)
    return int(match[1]) if match else None


def existing_indices(folder: str | os.PathLike) -> set[int]:
    """Return the indices of the images that `save_numbered` has written to `folder`; none if it does not exist."""
    if not Path(folder).is_dir():
        return set()
    return {index for name in os.listdir(folder) if (index := index_of(name)) is not None}


def iter_folder(folder: str | os.PathLike, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield the images below `folder`, sorted by name, as uint8 [B, C, H, W]; the last batch may be smaller.

    All must share the size and the kind (grey or colour) of the first.

    Raises:
        ValueError: `batch_size` below 1.
        UserError: no image; a damaged or different one, which the message names.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is below 1")
    return _batches_of(list_images(folder), batch_size)


def image_set(given: str | os.PathLike | torch.Tensor, name: str = "images") -> ImageSet:
    """The images of a folder, of an npz (uint8 [N, H, W, 1 or 3] under `arr_0`), or of a tensor uint8 [N, C, H, W].

    name: what those of a tensor are called. Raises UserError.
    """
    if isinstance(given, torch.Tensor):
        images = given
    elif isinstance(given, str | os.PathLike):
        name = os.fspath(given)
        if not os.path.exists(name):
            raise UserError(f"{name} does not exist: give a folder of images, or an npz with arr_0")
        if os.path.isdir(name):
            paths = list_images(name)
            first = read_images(paths[:1], like=paths[0])
            return ImageSet(name, len(paths), first.shape[1], lambda: _batches_of(paths, _SET_BATCH))
        images = _npz_images(Path(name))
    else:
        raise UserError(f"{name} is a {type(given).__name__}: give a folder, an npz file or a tensor of images")
    try:
        _check(images)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
    return ImageSet(name, len(images), images.shape[1], lambda: iter(images.split(_SET_BATCH)))


def _npz_images(path: Path) -> torch.Tensor:
    try:
        array = read_npz(path, {NPZ_KEY: "u"}, MOST_NPZ_BYTES).get(NPZ_KEY)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} is neither a folder nor an npz of images ({reason})") from None
    if array is None or array.dtype != "uint8" or array.ndim != 4 or array.shape[3] not in (1, 3) or not array.size:
        raise UserError(f"{path} has no images, uint8 [N, H, W, 1 or 3], under {NPZ_KEY}")
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def save_npz(source: str | os.PathLike | torch.Tensor, path: str | os.PathLike) -> None:
    """Write images as one uncompressed npz: uint8 [N, H, W, C] under the key `arr_0`, as guided-diffusion's evaluator.

    `source` is uint8 [N, C, H, W], or a folder as for `iter_folder`, whose images are then held in memory together.

    Raises:
        ValueError: not uint8 [N, C, H, W], or no image.
        UserError: as `iter_folder`, or the file cannot be written.
    """
    images = source if isinstance(source, torch.Tensor) else torch.cat(list(iter_folder(source, _READ_AT_ONCE)))
    _check(images)
    array = images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    _write(Path(path), lambda file: np.savez(file, array))  # the first is called NPZ_KEY


def npz_path(folder: Path, count: int) -> Path:
    """Where the first `count` images of `folder` are kept as one array."""
    return folder.with_name(f"{folder.name}_{count}.npz")


def check_npz(path: Path) -> None:
    """Raise UserError where something is in the way that `save_npz` has not written."""
    if not os.path.lexists(path):
        return
    with contextlib.suppress(OSError, ValueError, KeyError):
        with open_plain(path) as file:
            names = members(file).keys()
        first = read_npz(path, {NPZ_KEY: "u"}, MOST_NPZ_BYTES, rows=1)[NPZ_KEY]
        if names == {f"{NPZ_KEY}.npy"} and first.dtype == np.uint8 and first.ndim == 4:
            return
    raise UserError(f"{path} is in the way, and holds no images: move it, or choose another --images_dir")


def stale_npzs(folder: Path, images: torch.Tensor) -> list[Path]:
    """Files of other counts that `save_npz` wrote beside `folder`, whose first image is not that of `images`.

    images: those of the folder, uint8 [N, C, H, W]. A file that holds no images is nobody's, and left out.
    """
    stale = []
    for path in sorted(folder.parent.glob(f"{glob.escape(folder.name)}_*.npz")):
        if not re.fullmatch(r"_[0-9]+", path.stem.removeprefix(folder.name)):
            continue
        with contextlib.suppress(OSError, ValueError, KeyError):
            first = read_npz(path, {NPZ_KEY: "u"}, MOST_NPZ_BYTES, rows=1)[NPZ_KEY]
            if not np.array_equal(first, images[:1].permute(0, 2, 3, 1).numpy()):
                stale.append(path)
    return stale


def read_images(paths: Sequence[Path], like: Path) -> torch.Tensor:
    """Return the images at `paths`, all of the size and kind of the one at `like`, as uint8 [B, C, H, W].

    Raises:
        UserError: a damaged or different one, which the message names.
    """
    shape, batch = pil_to_tensor(decode_image(like)).shape, []
    for path in paths:
        image = pil_to_tensor(decode_image(path))
        if image.shape != shape:
            raise UserError(
                f"image {path} is {list(image.shape)} where {like.name} is {list(shape)} (channels, height, "
                "width); keep images of one kind in a folder"
            )
        batch.append(image)
    return torch.stack(batch)


def _batches_of(paths: list[Path], batch_size: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(paths), batch_size):
        yield read_images(paths[start : start + batch_size], like=paths[0])


def _check(images: torch.Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}, not uint8 [N, C, H, W] with C 1 or 3")


def _to_pil(image: torch.Tensor) -> Image.Image:
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _write(path: Path, write: Callable, settled: bool = True) -> None:
    """Let `write` fill a binary file, which then appears as `path` in one step; missing folders are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, settled=settled) as temporary, open(temporary, "wb") as file:
            write(file)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
