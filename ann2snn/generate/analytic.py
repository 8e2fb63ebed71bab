"""Analytic-DPM's statistics of a network: measured, and kept in the run's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoints import checkpoint
from ..config import SampleConfig, require
from ..convert import SpikingNetwork
from ..data import ImageDataset, to_model_range
from ..diffusion import VP, analytic_statistics
from ..diffusion.process import require_vp
from ..diffusion.samplers.grids import whole_times
from ..distributed.runtime import evaluating, place, prepare_folder, seed_from
from ..distributed.world import World
from ..errors import UserError
from ..files.atomic import replacing
from ..files.npz import read_npz
from ..nets.direct import DirectDenoiser
from ..quant import quantized_once
from ..run.tables import counted
from .subject import Sampled

BATCH = 32
MOST_BYTES = 2**24


def noise_statistics(
    source: checkpoint.Loaded,
    sample: SampleConfig,
    images: Callable[[], ImageDataset],
    count: int,
    folder: Path,
    world: World,
) -> Tensor | None:
    """Γ_t of the network of `source`, run as it is set to, float64 [diffusion_steps]; None where no sampler needs it.

    Measured by the main process on the first `count` images at the times that `sample` visits, and written to
    `{checkpoint}.analytic_….npz` in `folder`; the checkpoint's own folder may be the package's. Raises UserError.
    """
    if sample.sampler != "analytic_dpm":
        return None
    net = source.net
    require_vp(net.diffusion, "--sampler=analytic_dpm")
    require(count >= 1, f"--analytic_images={count}: use at least 1")
    dataset = images()
    path = folder / statistics_name(source, sample, count, dataset)
    if world.main and not path.exists():
        prepare_folder(folder)
        measured = measured_statistics(net, sample, _batches(dataset, min(count, len(dataset))), world.device)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, statistics=measured.numpy())
        times = counted(len(visited_times(net, sample)), "diffusion time")
        print(f"{path}: noise statistics at {times}, of {counted(count, 'image')}")
    world.wait()
    return _read(path)


def statistics_name(source: checkpoint.Loaded, sample: SampleConfig, count: int, dataset: ImageDataset) -> str:
    """A file's name that tells everything which decides the figures, the content of the data set included."""
    net = source.net
    spiking = net.spiking.to_dict() if isinstance(net, (SpikingNetwork, DirectDenoiser)) else {}
    mode = "-".join(str(value) for value in spiking.values()) or "ann"
    name = f"{source.path.stem}.analytic_{source.hash[:8]}_{source.weights}_{mode}_{sample.steps}{sample.skip}"
    data = f"{dataset.name}-{hashlib.blake2b(dataset.fingerprint().encode(), digest_size=4).hexdigest()}"
    return f"{name}_{data}_{count}_seed{sample.seed}.npz"


def measured_statistics(
    net: Sampled, sample: SampleConfig, batches: Iterable[Tensor], device: torch.device | None = None
) -> Tensor:
    """Γ_t of `net`, which runs in eval mode, at the times `sample` visits, float64 [diffusion_steps], NaN elsewhere.

    batches: uint8 images [N, C, H, W]. device: where the network goes first, if it is to go anywhere.

    Raises UserError for a network of another process, and where there are no images.
    """
    require_vp(net.diffusion, "--sampler=analytic_dpm")
    process = VP(net.diffusion)
    if device is not None:
        place(net, device)
    like = next(net.parameters())
    with torch.no_grad(), evaluating(net), quantized_once(net):
        generator = torch.Generator().manual_seed(seed_from(sample.seed, 0))
        images = (to_model_range(batch).to(like) for batch in batches)
        return analytic_statistics(net, process, images, visited_times(net, sample), generator)


def visited_times(net: Sampled, sample: SampleConfig) -> list[int]:
    """The times of the network calls that `sample` asks for."""
    return whole_times(VP(net.diffusion), sample.steps, sample.skip)


def _batches(dataset: ImageDataset, count: int) -> Iterator[Tensor]:
    for start in tqdm(range(0, count, BATCH), desc="noise statistics", unit="batch", leave=False, disable=None):
        yield torch.stack([dataset[i] for i in range(start, min(start + BATCH, count))])


def _read(path: Path) -> Tensor:
    try:
        return torch.from_numpy(read_npz(path, {"statistics": "f"}, MOST_BYTES)["statistics"]).double()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"refusing {path}: {error}; delete it to have it measured again") from None
