"""After the training of a spiking network: its file, cost account, raster and pictures; and SDM's fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..checkpoints import checkpoint
from ..config import SampleConfig, TrainConfig, check_ft_name
from ..data import ImageDataset
from ..distributed.runtime import place
from ..distributed.world import World
from ..errors import UserError
from ..nets.direct import DirectConfig, DirectDenoiser
from ..nets.sddpm import SDDPM, with_tsm
from . import train
from .common import owning
from .convert import RASTER_FILE, write_grids
from .cost import COST_FILE, COST_IMAGES, measure_direct
from .direct_raster import write_direct_raster

TRAINED = "trained_snn.pt"


def export(logdir: Path, sample: SampleConfig, world: World, gap_images: int, grid_images: int, batch_size: int) -> int:
    """Write `trained_snn.pt` from the best weights in `logdir`, else the last; what it costs, a raster and a grid.

    gap_images: images of the cost account; 0 leaves account and raster out. Returns the exit code.
    """
    source = checkpoint.load(train.best_or_last(logdir))
    if not isinstance(source.net, DirectDenoiser):
        raise UserError(f"{source.path} is no directly trained spiking network: remove it, or choose another --logdir")
    net = place(source.net, world.device)
    with owning(logdir, "export", world):
        if world.main:
            checkpoint.save(logdir / TRAINED, payload_of(source))
            print(f"{logdir / TRAINED}: {net.config.arch}, step {source.step}, S = {net.spike_steps} time steps")
            if gap_images:
                calls = sample.calls(net.diffusion)
                measure_direct(logdir / COST_FILE, net, min(gap_images, COST_IMAGES), sample.seed, calls)
                write_direct_raster(logdir / RASTER_FILE, net, sample.seed)
        if grid_images:
            write_grids(logdir, [net], sample, grid_images, batch_size, world)
        world.wait()
    return 0


def payload_of(source: checkpoint.Loaded) -> dict:
    """The averaged weights of a training checkpoint, as a network to hand on."""
    stage = "sdm" if getattr(source.net.config, "tsm", False) else "trained"
    payload = checkpoint.payload_of(source.net, stage=stage, step=source.step)
    payload["config"]["train"] = source.raw.get("config", {}).get("train", {})
    return payload


def tsm_folder(logdir: Path, spike_steps: int, name: str = "") -> Path:
    """Where `fine_tune` leaves its network. Raises UserError for a name that ends no folder's."""
    check_ft_name(name)
    return logdir / (f"SDM_{spike_steps}T" + (f"_{name}" if name else ""))


def fine_tune(
    folder: Path,
    source: checkpoint.Loaded,
    dataset: ImageDataset,
    config: TrainConfig,
    sample: SampleConfig,
    schedule: train.Schedule,
    world: World,
    spike_steps: int,
    *,
    resume: bool = True,
    amp: bool = False,
    recompute: bool = False,
    accepted: Callable[[], object] = lambda: None,
) -> int:
    """Give the SDDPM of `source` a learned factor per convolution and time step, and train all of it on.

    The weights are inherited: at as many time steps, the first output is the pretrained network's. Returns the exit
    code. accepted: see `train.run`.
    """
    assert isinstance(source.net, SDDPM)
    inherited = with_tsm(source.net, spike_steps)
    return train.run(
        *(folder, dataset, inherited.config, source.net.diffusion, config, sample, schedule, world),
        resume=resume,
        amp=amp,
        recompute=recompute,
        initial=inherited.state_dict,
        accepted=accepted,
    )


def is_direct(config: object) -> bool:
    """Whether a network's settings are those of a directly trained one."""
    return isinstance(config, DirectConfig)
