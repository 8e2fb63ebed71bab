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
from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..config import ImageSize, require
from ..data.decode import fit
from ..data.loader import to_model_range
from ..distributed.precision import in_tf32
from ..distributed.world import World
from ..errors import UserError
from ..run.tables import counted
from .fad_encoder import AutoEncoder
from .features import Extracted
from .frechet import FeatureStatistics, frechet_distance
from .frechet_metric import check_match
from .metric import Batch, Figures, Metric, Need, Setting
from .stats_file import ReferenceStatistics, read_stats
from .weights import digest

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
    has_logits = False

    def __init__(self, net: AutoEncoder, mode: str, device: torch.device | str = "cpu") -> None:
        require(mode in MODES, f"--fad_mode={mode} is unknown: use {' or '.join(MODES)}")
        self.mode, self.dim, self.distance_key = mode, net.latent, f"FAD_{mode}"
        self.channels, self.side = net.channels, net.side
        self._net, self._device = net.to(device), torch.device(device)
        self._stem = f"fad-autoencoder-{net.latent}@{net.side}px-{digest(net.state_dict())}"
        self.name = self.name_in(mode)

    def name_in(self, mode: str) -> str:
        """What this encoder is called in a mode."""
        return f"{self._stem} ({mode} mode)"

    def check_images(self, channels: int, size: ImageSize | None) -> None:
        """Raise UserError unless the encoder takes images of so many channels and this size: squares, of any side.

        size: None if it is not known yet.
        """
        require(
            channels == self.channels,
            f"--fad_encoder takes {self.channels} image channels, the images have {channels}: use another encoder",
        )
        if size is None:
            return
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


class Rebatcher:
    """The same images [N, …] in the same order, `size` at a time, however they come."""

    def __init__(self, size: int = BATCH) -> None:
        self.size, self._waiting, self._count = size, list[Tensor](), 0

    def add(self, images: Tensor) -> Sequence[Tensor]:
        """The batches that these images make full."""
        self._waiting.append(images)
        self._count += len(images)
        if self._count < self.size:
            return ()
        joined = torch.cat(self._waiting)
        self._count %= self.size
        full = len(joined) - self._count
        self._waiting = [joined[full:]]
        return joined[:full].split(self.size)

    def rest(self) -> Sequence[Tensor]:
        """The last batch, where images are left."""
        return (torch.cat(self._waiting),) if self._count else ()


class Gatherer:
    """Statistics of images (uint8 [B, C, H, W], any B), encoded `batch` at a time in their order."""

    def __init__(self, extractor: FadExtractor, batch: int = BATCH) -> None:
        self._extractor, self._batches = extractor, Rebatcher(batch)
        self._gathered = FeatureStatistics(extractor.dim)

    def add(self, images: Tensor) -> None:
        """Raises UserError for images of another kind than the encoder's."""
        for batch in self._batches.add(images):
            self._gathered.update(self._extractor(batch).features)

    def statistics(self) -> FeatureStatistics:
        """Of all images; called once."""
        for batch in self._batches.rest():
            self._gathered.update(self._extractor(batch).features)
        return self._gathered


def gather(
    batches: Iterable[Tensor], extractor: FadExtractor, batch: int = BATCH, progress: bool = True
) -> FeatureStatistics:
    """Statistics of all images in `batches`, see `Gatherer`."""
    gatherer = Gatherer(extractor, batch)
    for images in tqdm(batches, "FAD", unit="batch", leave=False, disable=None if progress else True):
        gatherer.add(images)
    return gatherer.statistics()


class FadMetric(Metric):
    """The Frechet autoencoder distance to the autoencoder's statistics, or else to the real images that are given.

    Which images share a batch must not depend on the number of processes: one is given all of them in order.
    """

    needs = frozenset({Need.AUTOENCODER, Need.ORDER})
    lower = ("FAD",)
    settings = ("fad_encoder", "fad_reference")

    def __init__(self, setting: Setting) -> None:
        require(setting.autoencoder is not None, "the FAD needs an autoencoder: add --fad_encoder")
        assert setting.autoencoder is not None and isinstance(setting.autoencoder.extractor, FadExtractor)
        self._reference, self._extractor = setting.autoencoder, setting.autoencoder.extractor
        if setting.channels is not None:
            self._extractor.check_images(setting.channels, setting.size)
        stats = self._reference.statistics
        if stats is None:
            require(setting.real_count >= 2, "the FAD needs statistics: add --fad_stats")
            self.needs = self.needs | {Need.REAL}
        else:
            check_match(self._extractor, stats)
        self._source = self._reference.source or setting.real_name
        self._gathered = Gatherer(self._extractor), Gatherer(self._extractor)

    def update(self, batch: Batch) -> None:
        self._gathered[batch.real].add(batch.images)

    def reduce(self, world: World) -> None:
        """Nothing: one process has been given all."""

    def compute(self) -> Figures:
        mu, sigma, count = self._gathered[0].statistics().compute()
        stats, extractor, source = self._reference.statistics, self._extractor, self._source
        if stats is None:
            stats = ReferenceStatistics(*self._gathered[1].statistics().compute(), extractor.name)
        note = f"{extractor.distance_key}: {extractor.name}, against {source}"
        has_count = stats.count is not None
        note += f" of {counted(stats.count, 'image')}" if has_count else ", which does not say how many images it is of"
        notes = [note]
        if count <= extractor.dim:
            notes.append(
                f"{counted(count, 'image')} for {extractor.dim} latent values: covariance rank-deficient, FAD biased"
            )
        distance = frechet_distance(mu, sigma, stats.mu, stats.sigma)
        settings = {"fad_encoder": extractor.name, "fad_reference": source}
        return Figures({extractor.distance_key: distance}, settings, notes)


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
