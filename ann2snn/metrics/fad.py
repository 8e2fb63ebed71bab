"""Frechet autoencoder distance (FAD): the Frechet distance between latent vectors of an autoencoder.

Two modes that are never compared with each other, and whose figures have different names:

FAD_published: as published (Kamata et al. 2022, 2110.00375; also Watanabe et al. 2023, 2312.01742). Their encoder was
    never switched to evaluation: its batch norms use the statistics of each batch, here of BATCH images in order. The
    vectors depend on which images share a batch, and much of what noise does to an image is normalized away.
FAD_eval: running statistics. A vector depends on its image alone.

Images: squares of 8 bits, scaled to the encoder's side by Pillow's bilinear filter where they have another (rounded to
8 bits), then mapped to [-1, 1]. Covariances are divided by n − 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..config import ImageSize, require
from ..data.decode import fit
from ..data.loader import to_model_range
from ..distributed.precision import in_tf32
from ..errors import UserError
from .fad_encoder import AutoEncoder, digest
from .features import Extracted
from .frechet import FeatureStatistics, frechet_distance
from .stats_file import ReferenceStatistics, read_stats

PUBLISHED = "published"
MODES = (PUBLISHED, "eval")
BATCH = 256  # of the published statistics; the last batch has what is left


class FadExtractor:
    """A `features.FeatureExtractor`: an autoencoder in one of the two MODES. In mode published a call is a batch.

    Args:
        net: its encoder is used, and not changed.
        mode: "published" or "eval"; part of the name, so that statistics of the modes cannot be mixed.
        device: where to compute; results come back on the CPU.

    Raises:
        UserError: the mode is unknown.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, net: AutoEncoder, mode: str, device: torch.device | str = "cpu") -> None:
        require(mode in MODES, f"--fad_mode={mode} is unknown: use {' or '.join(MODES)}")
        self.mode, self.dim, self.distance_key = mode, net.latent, f"FAD_{mode}"
        self.channels, self.side = net.channels, net.side
        self._net, self._device = net.to(device), torch.device(device)
        self._stem = f"fad-autoencoder-{net.latent}@{net.side}px-{digest(net)}"
        self.name = self.name_in(mode)

    def name_in(self, mode: str) -> str:
        """What this encoder is called in a mode."""
        return f"{self._stem} ({mode} mode)"

    def check_images(self, channels: int, size: ImageSize) -> None:
        """Raise UserError unless the encoder takes images of so many channels and this size: squares, of any side."""
        require(
            channels == self.channels,
            f"--fad_encoder takes {self.channels} image channels, the images have {channels}: use another encoder",
        )
        require(
            size.height == size.width,
            f"--fad_encoder takes squares, the images have {size.height}x{size.width} pixels (--img_size={size}): "
            "use another score",
        )

    def __call__(self, images: Tensor) -> Extracted:
        """uint8 [N, C, H, W] → Extracted([N, D] float32). Raises UserError for other types or channels."""
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise UserError(f"images are {images.dtype} {list(images.shape)}, expected uint8 [N,C,H,W]")
        self.check_images(images.shape[1], ImageSize(*images.shape[2:]))
        if len(images) == 0:
            return Extracted(torch.zeros(0, self.dim))
        x = to_model_range(_scaled(images.cpu(), self.side)).to(self._device)
        with torch.no_grad(), in_tf32(False), torch.autocast(self._device.type, enabled=False):
            return Extracted(self._net.encode(x, batch_statistics=self.mode == PUBLISHED).float().cpu())


def _scaled(images: Tensor, side: int) -> Tensor:
    """uint8 [N, C, H, W] → [N, C, side, side], as the recipe says."""
    if images.shape[2:] == (side, side):
        return images
    layouts = (image[0] if len(image) == 1 else image.permute(1, 2, 0) for image in images)
    return torch.stack([fit(Image.fromarray(layout.contiguous().numpy()), ImageSize(side, side)) for layout in layouts])


def rebatched(batches: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same images [N, …] in the same order, `size` at a time; the last batch may be smaller."""
    waiting: list[Tensor] = []
    count = 0
    for images in batches:
        waiting.append(images)
        count += len(images)
        if count >= size:
            joined = torch.cat(waiting)
            whole = count - count % size
            yield from joined[:whole].split(size)
            waiting, count = [joined[whole:]], count % size
    if count:
        yield torch.cat(waiting)


def gather(
    batches: Iterable[Tensor], extractor: FadExtractor, batch: int = BATCH, progress: bool = True
) -> FeatureStatistics:
    """Statistics of all images in `batches` (uint8 [B, C, H, W], any B), encoded `batch` at a time in their order."""
    gathered = FeatureStatistics(extractor.dim)
    bar = tqdm(rebatched(batches, batch), "FAD", unit="batch", leave=False, disable=None if progress else True)
    for images in bar:
        gathered.update(extractor(images).features)
    return gathered


def fad(
    batches: Iterable[Tensor],
    extractor: FadExtractor,
    stats: ReferenceStatistics,
    batch: int = BATCH,
    progress: bool = True,
) -> tuple[float, int]:
    """(distance to `stats`, number of images), see `gather`. Raises UserError: other statistics, or too few images."""
    if (stats.extractor, stats.dim) != (extractor.name, extractor.dim):
        raise UserError(f"reference statistics are of '{stats.extractor}', the images are seen by '{extractor.name}'")
    mu, sigma, count = gather(batches, extractor, batch, progress).compute()
    return frechet_distance(mu, sigma, stats.mu, stats.sigma), count


def read_fad_stats(path: str | os.PathLike, extractor: FadExtractor) -> ReferenceStatistics:
    """Statistics to compare `extractor`'s vectors with: the published files (`mu`, `sigma`), or our own.

    A file that names no encoder is taken for one of this encoder in mode published, as the published ones are.

    Raises:
        UserError: missing, damaged, or of another encoder, mode or width.
    """
    stats = read_stats(path, unnamed=(extractor.name_in(PUBLISHED), extractor.dim))
    for mode in MODES:
        if mode != extractor.mode and stats.extractor == extractor.name_in(mode):
            raise UserError(
                f"statistics file {path} was made in mode {mode}: with --fad_mode={extractor.mode} the distance would "
                f"compare two different things; use --fad_mode={mode}, or make statistics with --make_stats"
            )
    if (stats.extractor, stats.dim) != (extractor.name, extractor.dim):
        raise UserError(f"statistics file {path} is of '{stats.extractor}', --fad_encoder is '{extractor.name}'")
    return stats
