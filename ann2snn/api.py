"""The stages from Python: load, build, convert, sample, measure the gap."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .checkpoints import checkpoint, folders, shipped
from .checkpoints.payload import check_pair, payload_of
from .checkpoints.power import power_average
from .config import (
    AUTO,
    DiffusionConfig,
    SampleConfig,
    UNetConfig,
    check_bool,
    check_carry_steps,
    check_limits,
    check_seed,
    require,
)
from .convert import (
    GapReport,
    SpikingNetwork,
    as_device,
    convert,
    fold_thresholds,
    measure_gap,
    register_quantizer,
)
from .convert.gap import GapMeter
from .cost import CostReport, count_calls
from .diffusion.power_ema import search
from .distributed.runtime import check_device_name, naming_device
from .errors import UserError
from .exchange import export_onnx, export_program
from .generate.analytic import BATCH, measured_statistics
from .generate.classes import given_labels
from .generate.editing import edit
from .generate.inpainting import inpaint
from .generate.interpolation import interpolate
from .generate.inversion import invert, round_trip
from .generate.loss import mean_loss
from .generate.noise import check_noise
from .generate.probe import sampler_calls
from .generate.sampling import Given, generate_all
from .generate.subject import check_call, check_sampled, given_images, sampling
from .hardware import export_nir
from .latent import Autoencoder, autoencoder_for, load_autoencoder
from .nets import UNet
from .nets.architecture import Network, asked_for_variance
from .nets.in_pipeline import in_pipeline
from .ptq import quantize, register_attention
from .ptq.calls import read_calls
from .run.folder import SNAPSHOTS

__all__ = [
    "as_device",
    "build_unet",
    "convert",
    "cost",
    "denoising_loss",
    "edit",
    "export_nir",
    "export_onnx",
    "export_program",
    "fold_thresholds",
    "gap",
    "in_pipeline",
    "inpaint",
    "interpolate",
    "invert",
    "load",
    "load_autoencoder",
    "noise_statistics",
    "pretrained",
    "quantize",
    "register_attention",
    "register_quantizer",
    "round_trip",
    "sample",
    "save",
    "search_sigma_rel",
    "trajectory",
]


def load(
    path: str | os.PathLike,
    *,
    weights: str = "ema",
    bit: int | None = None,
    spike_steps: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    norm_groups: int | None = None,
    device: str = "cpu",
    sigma_rel: float | None = None,
    **spiking: Any,
) -> Network | SpikingNetwork:
    """Read a network, ANN or SNN, in eval mode, from a file or folder of this program, the published ones or others.

    path: a checkpoint file of this program, the published conversion code, SDDPM, SDM, FSDDIM, ddpm-torch or
    pytorch-ddpm; or a folder that `save` or diffusers wrote (a `UNet2DModel`, or a pipeline). See docs/models.md.
    weights: "ema" (averaged) or "net" (raw; training checkpoints only).
    bit: activation bits, for files of the published conversion code, which do not store them.
    spike_steps: for files of the published SDDPM (default 4) and FSDDIM (default 8), which do not store them either.
    image_size, norm_groups: for files that do not store them; 32 is assumed, with a note. They must agree with a file
    that does. image_size is one number for squares, or (height, width).
    sigma_rel: for a training with --power_ema, the relative width (0.005 to 0.28) of the power-function average that is
    built from the snapshots beside the file, in place of `weights`. Source: Karras et al. (2024), arXiv:2312.02696.
    spiking: fields of `SpikingConfig` (schedule, signed, …) that override how a spiking network runs.

    The returned network has the attributes `config`, `in_channels`, `image_size` (a pair of height and width),
    `diffusion`, and, if it is a spiking network, `spiking`.

    Raises UserError (a ValueError) for a missing, damaged or foreign file.
    """
    require(weights in ("ema", "net"), f'weights={weights}: use "ema" or "net"')
    check_device_name(device)
    options: dict[str, Any] = {"bit": bit, "spike_steps": spike_steps, "image_size": image_size}
    options["expected"] = {} if norm_groups is None else {"norm_groups": ("norm_groups", norm_groups)}
    if sigma_rel is None:
        loaded = checkpoint.load(_file(path), weights=weights, **options)
    else:
        require(weights == "ema", f"weights={weights}: not with sigma_rel, which chooses an average itself")
        loaded = power_average(_file(path), sigma_rel, Path(path).parent / SNAPSHOTS, **options).loaded
    with naming_device(device):
        net = loaded.net.to(device)
    if spiking:
        if not isinstance(net, SpikingNetwork):
            raise TypeError(f"{', '.join(spiking)} given, but {path} is no converted network: use ann2snn.convert")
        net.spiking = net.spiking.changed(**spiking)
    return net


def save(net: nn.Module, path: str | os.PathLike, *, dtype: str = "float32", **about: object) -> None:
    """Write a network of this program, ANN or SNN, with its settings, to a file or folder that `load` reads.

    path: a new file that ends in ".pt", for a checkpoint as the scripts write it; anything else is a new folder with
    `model.safetensors` and `config.json`.
    dtype: of a folder's weights, "float32", "float64" or "float16" (half the size; they are rounded, and read as
    float32).
    about: plain values to store with the network, such as step=20000.

    Raises UserError (a ValueError) if `path` exists or cannot be written, or if the network is foreign.
    """
    path = Path(_file(path))
    require(isinstance(dtype, str), f"dtype={dtype}: use one of {', '.join(folders.DTYPES)}")
    payload = payload_of(net, **about)
    if path.suffix != ".pt":
        folders.write(path, payload, dtype)
        return
    require(dtype == "float32", f"dtype={dtype}: only for folders; a .pt file keeps the weights as they are")
    require(not os.path.lexists(path), f"{path} exists: nothing is overwritten; choose another name")
    checkpoint.save(path, payload)


def search_sigma_rel(path: str | os.PathLike, figure: Callable[[nn.Module], float]) -> dict[float, float]:
    """Try about a dozen power-function averages of a training: {width: `figure` of that average}, narrow to wide.

    path: a checkpoint of a training with --power_ema.
    figure: a function of a network in eval mode, better if lower, such as `denoising_loss` on images held back, or a
    score. `load(path, sigma_rel=min(found, key=found.get))` is the best.

    A figure that is not finite is returned as infinity. Raises UserError as `load` does, and if no figure is finite.
    """
    return search(lambda width: float(figure(load(path, sigma_rel=width))))


def denoising_loss(
    net: nn.Module,
    images: Tensor,
    *,
    labels: Sequence[int | str] | Tensor | None = None,
    seed: int = 0,
    autoencoder: Autoencoder | None = None,
) -> float:
    """Mean squared error of the prediction of a denoiser, ANN or SNN, on noised images; the mean over images and times.

    images: real ones, uint8 [N, C, H, W].
    labels: for a class-conditional network, the class of each image.
    seed: the same images and seed give every network the same times and noise, so that losses can be compared.
    autoencoder: for a network on latents, by default its own; the loss is that of the images' latents.

    The result is NaN where a prediction is NaN. Raises UserError for what cannot be measured.
    """
    net = check_sampled(net)
    inputs = given_images(net, images, autoencoder)
    return mean_loss(net, inputs, None if labels is None else given_labels(net, labels, len(images)), check_seed(seed))


def _file(path: object) -> str | os.PathLike:
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"path is a {type(path).__name__}: give the name of a file or folder")
    require(bool(os.fspath(path)), "path is empty: give the name of a file or folder")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise UserError(f"path {os.fspath(path)[:200]!r}: {getattr(error, 'strerror', None) or error}") from None
    return path


def pretrained(name: str = "") -> Network:
    """A trained, quantized network that ships with the package, in eval mode; see docs/pretrained.md.

    Raises UserError, which lists the names, for another name.
    """
    names = shipped.names()
    require(name in names, f"pretrained({name!r}): use one of {', '.join(names)}")
    return checkpoint.load(shipped.FOLDER / name).unconverted


def build_unet(*, bit: int = 8, diffusion: DiffusionConfig | None = None, **config: Any) -> UNet:
    """A U-Net with new random weights.

    bit: activation bits; 32 is the plain ReLU network.
    diffusion: its process. The U-Net takes its number of diffusion steps from it, and also predicts the variance if its
    var_type is "learned_range".
    config: fields of `UNetConfig`.

    Raises UserError for settings that no network can have.
    """
    if diffusion is not None:
        known = isinstance(diffusion, DiffusionConfig)
        require(known, f"diffusion is a {type(diffusion).__name__}: give a DiffusionConfig")
        config = {"diffusion_steps": diffusion.diffusion_steps} | config
    settings = UNetConfig(bits=bit, **config)
    settings = settings if diffusion is None else asked_for_variance(settings, diffusion)
    net = UNet(settings, diffusion=diffusion)
    check_pair(settings, net.diffusion)
    return net


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
    x_T: Tensor | None = None,
    statistics: Tensor | None = None,
    labels: int | str | Sequence[int | str] | Tensor | None = None,
    guidance: float = 0.0,
    autoencoder: Autoencoder | None = None,
    **options: Any,
) -> Tensor:
    """Images 0..n−1 of seed `seed`, uint8 [n, C, H, W]; the same noise for every network and batch size.

    sampler, steps, eta, clip: as the flags --sampler, --sampler_steps, --eta and --clip_x0. Networks of the processes
    "cld" and "blur" take sampler="gddim" or "euler".
    batch_size: on a GPU; on a CPU images are computed in groups of a fixed size, see `sampling`.
    progress: show a bar, where there is a terminal.
    x_T: noise to start from, float [n, C, H, W] with the network's channels, instead of the seed's first draws.
    statistics: the result of `noise_statistics`, which sampler="analytic_dpm" needs.
    labels: for a class-conditional network, the class of all images, by number or name, or n classes, one for each
    image; "none" for no class. By default image i has class i modulo the number of classes.
    guidance: w of classifier-free guidance, with the prediction (1 + w)·conditional − w·unconditional.
    autoencoder: for a network on latents, decodes them; by default `net.autoencoder`. Latents are never clipped.
    options: other fields of `SampleConfig` (skip, order, denoise, ddim_epsilon, corrector, lower_order_final,
    grid_power, amp, tf32), with the defaults of the scripts.

    The network runs in eval mode, and is left in the mode it was in. Raises UserError for arguments that are not valid,
    or not together.
    """
    net = check_sampled(net)
    n, batch_size = check_limits("n", n, "n"), check_limits("batch_size", batch_size, "batch_size")
    progress = check_bool(progress, "progress")
    of_all, of_each = _classes(net, labels, n, options)
    config = SampleConfig(sampler, steps, eta, clip, seed, guidance=guidance, **of_all, **options).check_taken()
    require(
        statistics is None or sampler == "analytic_dpm", f"statistics: only for sampler=analytic_dpm, not {sampler}"
    )
    if x_T is not None:
        check_noise(net, x_T, n)
    given = Given(statistics, x_T, of_each, autoencoder_for(net, autoencoder))
    return generate_all(net, config, n, batch_size, given=given, progress=progress)


def _classes(
    net: nn.Module, labels: int | str | Sequence[int | str] | Tensor | None, n: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], Tensor | None]:
    """`labels` as a field of `SampleConfig`, or as the classes of n images; settings: the fields given beside them.

    Raises UserError.
    """
    if labels is None:
        return {}, None
    require("class_label" not in settings, "labels and class_label: both say of which classes images are; give one")
    if isinstance(labels, (int, str, numbers.Integral)):  # numpy's, too
        return {"class_label": labels}, None
    return {}, given_labels(net, labels, n)


def noise_statistics(
    net: nn.Module, images: Tensor, *, autoencoder: Autoencoder | None = None, **settings: Any
) -> Tensor:
    """Γ_t = E‖ε̂(x_t, t)‖²/d of the network's own predictions, float64 [diffusion_steps]: for sampler="analytic_dpm".

    images: real ones, uint8 [N, C, H, W]; 256 are enough.
    settings: steps (50) and skip of the calls in which the network will be sampled, and seed; Γ_t is NaN
    at other times.
    autoencoder: for a network on latents, by default its own.

    The scripts gather the same (`--analytic_images`), in a file.
    Source: Bao et al., Analytic-DPM (2022), arXiv:2201.06503.

    The network runs in eval mode, and is left in the mode it was in. Raises UserError for what cannot be measured.
    """
    net = check_sampled(net)
    inputs = given_images(net, images, autoencoder)
    return measured_statistics(net, sampling(settings | {"sampler": "analytic_dpm"}), inputs.split(BATCH))


def trajectory(
    net: nn.Module,
    n: int = 1,
    *,
    labels: int | str | Sequence[int | str] | Tensor | None = None,
    **settings: Any,
) -> list[tuple[Tensor, ...]]:
    """The calls of a sampler while it makes images 0..n−1, for `cost`: a tuple for each, x [n, C, H, W] and t [n].

    The tuple of a class-conditional network also has y [n]. With guidance there are 2n rows; the last n are the images
    without their classes.
    labels, settings: sampler, steps, seed, eta, clip, guidance and options as in `sample`. Raises UserError as `sample`
    does.
    """
    net = check_sampled(net)
    n = check_limits("n", n, "n")
    require(n >= 1, f"n={n}: use at least 1")
    of_all, of_each = _classes(net, labels, n, settings)
    return sampler_calls(net, sampling(settings | of_all), n, of_each)


def gap(ann: nn.Module, snn: SpikingNetwork, *args: Any, **kwargs: Any) -> GapReport:
    """Relative L2 error of the SNN's time-averaged output against the ANN's, block by block; see `GapReport`.

    args, kwargs: of a call of either network; x [N, C, H, W] and t [N] for a denoiser. Both run in eval mode and must
    have the same dtype. Use float64 to distinguish a real gap from rounding.
    """
    meter = GapMeter(ann, snn)
    check_call(snn, args, kwargs)
    if len(args) in (2, 3) and not kwargs and snn.folds_time:
        return measure_gap(ann, snn, args[0], args[1], y=args[2] if len(args) == 3 else None)  # in batches
    meter.update(*args, **kwargs)
    return meter.report()


def cost(
    net: nn.Module,
    *args: object,
    trajectory: Sequence[object] | None = None,
    carry: bool = False,
    carry_steps: int | str = "auto",
    **kwargs: object,
) -> CostReport:
    """Operations per image and network call, layer by layer, counted on a run of `net`; and their energy.

    net: any quantized network, counted as an ANN, or a spiking one, counted as it is set to run.
    args, kwargs: of one call.
    trajectory: instead, the calls of a sampler (`ann2snn.trajectory`), each a tuple, a dict, or a pair (tuple, dict).
    carry: keep a spiking network's levels from call to call.
    carry_steps: time steps of a carried call under `stream`, or "auto": until no neuron fires.

    See `CostReport` and docs/cost.md. Raises UserError for what cannot be counted.
    """
    if trajectory is None:
        require(bool(args or kwargs), "cost: give the arguments of a call, or a trajectory of calls")
        trajectory = [(args, kwargs)]
    elif args or kwargs:
        raise UserError("cost: give the arguments of one call, or a trajectory of calls, not both")
    carry = check_bool(carry, "carry")
    require(check_carry_steps(carry_steps) == AUTO or carry, f"carry_steps={carry_steps}: only with carry=True")
    calls = read_calls(trajectory, "trajectory")
    for call in calls:
        check_call(net, *call)
    return count_calls(net, calls, carry, carry_steps)
