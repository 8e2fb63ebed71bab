"""After the training of a spiking network: its file, cost account, raster and pictures; and SDM's fine-tuning."""

from __future__ import annotations

from dataclasses import replace

from ..checkpoints import checkpoint
from ..checkpoints.seal import content_hash
from ..config import SampleConfig, check_ft_name
from ..distributed.runtime import place
from ..distributed.world import World
from ..errors import UserError
from ..nets.direct import DirectConfig, DirectDenoiser
from ..nets.sddpm import SDDPM, with_tsm
from ..run.folder import COST_FILE, RASTER_FILE, TRAINED, RunFolder
from ..training.state import Initial
from . import train
from .common import owning
from .convert import write_grids
from .cost import COST_IMAGES, measure_direct
from .direct_raster import write_direct_raster
from .plan import AS_USUAL, Options, Training


def export(
    folder: RunFolder, sample: SampleConfig, world: World, gap_images: int, grid_images: int, batch_size: int
) -> int:
    """Write `trained_snn.pt` from the best weights in `folder`, else the last; what it costs, a raster and a grid.

    gap_images: images of the cost account; 0 leaves account and raster out. Returns the exit code.
    """
    logdir, source = folder.path, checkpoint.load(folder.best_or_last())
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
    return checkpoint.payload_from(source.net, source, stage=stage, step=source.step)


def tsm_folder(folder: RunFolder, spike_steps: int, name: str = "") -> RunFolder:
    """Where `fine_tune` leaves its network. Raises UserError for a name that ends no folder's."""
    check_ft_name(name)
    return folder.inside(f"SDM_{spike_steps}T" + (f"_{name}" if name else ""))


def fine_tune(plan: Training, source: checkpoint.Loaded, spike_steps: int, options: Options = AS_USUAL) -> int:
    """Give the SDDPM of `source` a learned factor per convolution and time step, and train all of it on.

    The weights are inherited: at as many time steps, the first output is the pretrained network's. The network of
    `plan` is the one without the factors; `options.initial` is not asked. Returns the exit code.
    """
    assert isinstance(source.net, SDDPM)
    inherited = with_tsm(source.net, spike_steps)
    initial = Initial(source.path, content_hash(source.net.state_dict()), inherited.state_dict)
    return train.run(replace(plan, network=inherited.config), replace(options, initial=initial))


def is_direct(config: object) -> bool:
    """Whether a network's settings are those of a directly trained one."""
    return isinstance(config, DirectConfig)
