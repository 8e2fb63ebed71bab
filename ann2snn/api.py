"""The stages from Python: load, build, convert, sample, measure the gap."""

from __future__ import annotations

import os

from torch import Tensor, nn

from .config import DiffusionConfig, SampleConfig, UNetConfig, check_limits, require
from .convert import GapReport, SpikingDenoiser, fold_thresholds, measure_gap
from .convert import convert as convert_network
from .convert import freeze_norms as freeze_network_norms
from .cost import CostReport, count_operations
from .io import checkpoint
from .nets import UNet
from .nets.architecture import Network
from .nets.direct import DirectDenoiser
from .sampling import generate_all

__all__ = ["build_unet", "convert", "cost", "fold_thresholds", "freeze_norms", "gap", "load", "sample"]


def load(
    path: str | os.PathLike,
    *,
    weights: str = "ema",
    bit: int | None = None,
    spike_steps: int | None = None,
    device: str = "cpu",
    **spiking: object,
) -> Network | SpikingDenoiser:
    """Read a network, ANN or SNN, of this program or of the published ones, in eval mode.

    weights: "ema" (averaged) or "net" (raw; training checkpoints only).
    bit: activation bits, for files of the published conversion code, which do not store them.
    spike_steps: of files of the published SDDPM (default 4) and FSDDIM (default 8), which do not store them either.
    spiking: fields of `SpikingConfig` (schedule, signed, …) that override how a spiking network runs.

    The network knows itself: `config`, `in_channels`, `image_size`, `diffusion` (and `spiking`, if it is one).

    Raises UserError (a ValueError) for a missing, damaged or foreign file.
    """
    net = checkpoint.load(path, weights=weights, bit=bit, spike_steps=spike_steps).net.to(device)
    if spiking:
        if not isinstance(net, SpikingDenoiser):
            raise TypeError(f"{', '.join(spiking)} given, but {path} is no converted network: use ann2snn.convert")
        net.clock.config = net.spiking.changed(**spiking)
    return net


def build_unet(*, bit: int = 8, diffusion: DiffusionConfig | None = None, **config: object) -> UNet:
    """A U-Net with fresh weights; `bit=32` is the plain ReLU network. `config`: fields of `UNetConfig`."""
    settings = UNetConfig(bits=bit, **config)
    return UNet(settings, diffusion=diffusion)


def convert(ann: UNet, **options: object) -> SpikingDenoiser:
    """The integrate-and-fire network of a quantized U-Net; the ANN is left as it is.

    options: schedule="layer_sync" | "stream", signed=True, stream_norm="cumulative" | "per_step" | "frozen",
    if_neuron="bounded" | "reference", settle_steps=0 | n | "auto", burst=m. With "frozen", call `freeze_norms` next.

    Raises UserError where there is nothing to count: full precision, or activation levels that are not uniform.
    """
    return convert_network(ann, **options)


def freeze_norms(ann: UNet, snn: SpikingDenoiser, x: Tensor, t: Tensor, bins: int = 10) -> None:
    """Calibrate `snn` for stream_norm="frozen", in place: norm statistics of `ann`, one set a bin of diffusion time.

    x [N, C, H, W], t [N]: noised images and their diffusion times, or states of a sampler's path, on all times that
    the network is to run at. They are part of the network from then on, and saved with it. Raises UserError.
    """
    freeze_network_norms(ann, snn, x, t, bins)


def sample(
    net: nn.Module,
    n: int,
    *,
    sampler: str = "ddim",
    steps: int = 50,
    seed: int = 0,
    eta: float = 0.0,
    clip: bool = True,
    batch_size: int = 64,
    progress: bool = True,
    **options: object,
) -> Tensor:
    """Images 0..n−1 of seed `seed`, uint8 [n, C, H, W]; the same noise for every network and batch size.

    batch_size: on a GPU; on a CPU images are computed in groups of a fixed size, see `sampling`.
    options: other fields of `SampleConfig` (skip, order, denoise, ddim_epsilon, corrector, grid_power, amp), with the
    defaults of the scripts. Networks of the processes "cld" and "blur" take sampler="gddim" or "euler".
    progress: show a bar, where there is a terminal.

    The network runs in eval mode, and is left in the mode it was in. Raises UserError for arguments that nothing can be
    done with, and for what does not fit together.
    """
    missing = [name for name in ("in_channels", "image_size", "diffusion") if not hasattr(net, name)]
    require(
        isinstance(net, nn.Module) and not missing,
        f"net={type(net).__name__}: not a network that can be sampled; it lacks {', '.join(missing) or 'parameters'}",
    )
    n, batch_size = check_limits("n", n, "n"), check_limits("batch_size", batch_size, "batch_size")
    config = SampleConfig(sampler, steps, eta, clip, seed, **options)
    return generate_all(net, config, n, batch_size, progress=progress)


def gap(ann: UNet, snn: SpikingDenoiser, x: Tensor, t: Tensor) -> GapReport:
    """Relative L2 error of the SNN's time-averaged output against the ANN's, block by block; see `GapReport`.

    x [N, C, H, W], t [N]. Both networks must share a dtype; float64 tells exactness from rounding.
    """
    return measure_gap(ann, snn, x, t)


def cost(net: SpikingDenoiser | UNet | DirectDenoiser, x: Tensor, t: Tensor) -> CostReport:
    """Operations per image and network call, layer by layer, counted on a run of `net`; and their energy.

    x [N, C, H, W], t [N]. A U-Net is counted as the quantized ANN it is, a spiking network as it is set to run. See
    `CostReport` and docs/cost.md.
    """
    return count_operations(net, x, t)
