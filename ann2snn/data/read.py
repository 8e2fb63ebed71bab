"""Reads the images of a data set one by one: of an array, or of files."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..config import ImageSize
from ..errors import UserError
from .decode import decode_image, fit

CHUNK = 256  # images that a thread reads at a time


@dataclass(frozen=True)
class ImageArray:
    """Image i of one uint8 array, [N, H, W] or [N, H, W, 3], scaled to `img_size`."""

    array: torch.Tensor
    img_size: ImageSize

    def __call__(self, index: int) -> torch.Tensor:
        return fit(Image.fromarray(self.array[index].numpy()), self.img_size)

    def digest(self) -> str:
        return hashlib.blake2b(self.array.reshape(-1).numpy().data, digest_size=8).hexdigest()


@dataclass(frozen=True)
class ImageFiles:
    """Image i of files, decoded and scaled to `img_size`; crop: pixels of the shorter side at most, before that."""

    paths: Sequence[Path]
    channels: int
    img_size: ImageSize
    folder: Path
    crop: int | None = None

    def __call__(self, index: int) -> torch.Tensor:
        return fit(decode_image(self.paths[index], self.channels), self.img_size, self.crop)

    def digest(self) -> str:
        """Raises UserError if a file is gone."""
        digest = hashlib.blake2b(digest_size=8)
        for path in self.paths:
            try:
                size = path.stat().st_size
            except OSError as error:
                raise UserError(f"cannot read image {path}: {error.strerror}; put it back") from None
            digest.update(os.fsencode(path.relative_to(self.folder).as_posix()) + f"\0{size}\0".encode())
        return digest.hexdigest()


def read_all(read: Callable[[int], torch.Tensor], count: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Images 0 to count - 1, uint8 [count, *shape]; raises what `read` raises."""
    images = torch.empty((count, *shape), dtype=torch.uint8)

    def fill(start: int) -> None:
        for index in range(start, min(start + CHUNK, count)):
            images[index] = read(index)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter's lock
        for _ in pool.map(fill, range(0, count, CHUNK)):
            pass  # taking the results raises the first failure and drops the chunks not yet begun
    return images
