"""One way to train and to sample, whatever the process: VP (DDPM), CLD or blur diffusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..config import DiffusionConfig, SampleConfig, require
from ..errors import UserError
from .blur import BDM, BDMConfig
from .cld import CLD
from .continuous_loss import noise_error, training_times
from .continuous_vp import ContinuousVP
from .gddim import sample_euler, sample_gddim, with_label_scale
from .gddim_coefficients import check_options, intervals_for, time_grid
from .linear_process import LinearProcess
from .loss import training_loss
from .precondition import LinearFirst, noise_weights
from .samplers import SAMPLERS, check, options_of
from .synaptic import SynapticLoss, synaptic_loss
from .vp import VP

Process = VP | CLD | BDM
Denoiser = Callable[[Tensor, Tensor], Tensor]


def make_process(config: DiffusionConfig, image_size: int) -> Process:
    """The process that `config` describes, for square images of `image_size` pixels."""
    if config.process == "cld":
        return CLD()
    return BDM(BDMConfig(image_size=image_size)) if config.process == "blur" else VP(config)


def network_channels(config: DiffusionConfig, image_channels: int) -> int:
    """Channels of the network's input and output: CLD adds a velocity to each of the image's."""
    return 2 * image_channels if config.process == "cld" else image_channels


def image_channels(net) -> int:
    """Channels of the images that a denoiser makes, decoded where they are latents."""
    return net.diffusion.decoded_channels or net.in_channels // network_channels(net.diffusion, 1)


def image_side(net) -> int:
    """Height and width of these images in pixels; `net.image_size` is that of its input."""
    return net.image_size * net.diffusion.downscale


def clips(sample: SampleConfig, config: DiffusionConfig) -> bool:
    """Whether the predicted image is clipped inside the chain: latents have no range that they could be clipped to."""
    return sample.clip and not config.autoencoder


def current_steps(net) -> int | None:
    """Time steps of the currents that a network, or its configuration, takes; None if it takes images alone."""
    return net.spike_steps if getattr(net, "currents", False) else None


def draw_times(process: Process, count: int, device=None, generator: torch.Generator | None = None) -> Tensor:
    """Diffusion times [count] for training: VP whole steps, else float64 in [t_min, 1) on the CPU."""
    if isinstance(process, VP):
        return torch.randint(process.diffusion_steps, (count,), device=device, generator=generator)
    return training_times(process, torch.rand(count, dtype=torch.float64, generator=generator))


def label_scale(config: DiffusionConfig) -> float:
    """What times in [0, 1] are multiplied with for the network, which was built for steps 0 to T − 1."""
    return config.diffusion_steps - 1.0


def network_pair(
    process: Process, config: DiffusionConfig, x_0: Tensor, t: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """What a network is trained on: x [N, C', H, W] and the time it is told [N]. noise is like x."""
    if isinstance(process, VP):
        return process.diffuse(x_0, t, noise), t
    return process.diffuse(x_0, t, noise, **factor_of(process, config)), label_scale(config) * t.to(x_0)


def factor_of(process: Process, config: DiffusionConfig) -> dict[str, str]:
    """The keyword by which CLD's functions learn which K the network predicts; none for the other processes."""
    return {"factor": config.factor} if isinstance(process, CLD) else {}


def denoising_loss(
    net: Denoiser,
    process: Process,
    config: DiffusionConfig,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    loss_type: str,
    synaptic: SynapticLoss | None = None,
) -> Tensor:
    """Loss of each image [N]. noise ~ N(0, I) has the network's channels. `synaptic` is needed for "scl" alone."""
    if loss_type == "scl":
        if synaptic is None or not isinstance(process, VP):
            raise ValueError('loss_type="scl" is for VP alone, and needs `synaptic`')
        return synaptic_loss(net, process, x_0, t, noise, synaptic)
    if isinstance(process, VP):
        return training_loss(net, process, x_0, t, noise, loss_type)
    scaled = with_label_scale(whole_prediction(net, process, config), label_scale(config))
    loss = noise_error(scaled, process, x_0, t, noise, **factor_of(process, config)).flatten(1).mean(dim=1)
    # Not of the linear prediction above, which is made at the float32 times that the network is told: blur diffusion's
    # weights would be off by 1e-5.
    return loss * noise_weights(process, t).to(loss) if config.linear_first else loss


def whole_prediction(net: Denoiser, process: Process, config: DiffusionConfig) -> Denoiser:
    """The noise prediction of a network that may have learned only what a linear one leaves."""
    if not config.linear_first or isinstance(process, VP):
        return net
    return LinearFirst(net, process, label_scale(config))


def check_sampling(
    config: DiffusionConfig,
    image_size: int,
    sample: SampleConfig,
    statistics: Tensor | None = None,
    spike_steps: int | None = None,
) -> None:
    """Raise UserError, before anything is computed, where sampler and process or network do not fit together.

    spike_steps: see `current_steps`.
    """
    sample.check_fits(config)
    process = make_process(config, image_size)
    if sample.sampler in SAMPLERS:
        check(sample.sampler, _vp(process), **options_of(sample, statistics, spike_steps))
        return
    linear, options = _linear(process, config, sample)
    corrector = options.get("corrector", "none")
    intervals = intervals_for(sample.steps, corrector, options["denoise"])
    time_grid(linear, intervals, sample.grid_power)
    order = options.get("order", 0)
    check_options(linear, intervals, order, options.get("factor", "R"), corrector, sample.eta)


def run_sampler(
    net: Denoiser,
    config: DiffusionConfig,
    image_size: int,
    sample: SampleConfig,
    noise: Callable[[], Tensor],
    statistics: Tensor | None = None,
    on_step: Callable[[float, Tensor], None] | None = None,
    spike_steps: int | None = None,
) -> Tensor:
    """Images [N, C, H, W] from draws of `noise` in the network's shape; see `check_sampling`."""
    process = make_process(config, image_size)
    if sample.sampler in SAMPLERS:
        options = options_of(sample, statistics, spike_steps)
        chain = SAMPLERS[sample.sampler]
        clip = clips(sample, config)
        return chain(net, _vp(process), noise(), noise=noise, clip=clip, on_step=on_step, **options)
    linear, options = _linear(process, config, sample)
    if not isinstance(process, VP):
        net = with_label_scale(whole_prediction(net, process, config), label_scale(config))
    run: Callable[..., Tensor] = sample_gddim if sample.sampler == "gddim" else sample_euler
    common = {"steps": sample.steps, "power": sample.grid_power, "lam": sample.eta, "clip": clips(sample, config)}
    return run(net, linear, linear.prior(noise()), noise=noise, on_step=on_step, **common, **options)


def _vp(process: Process) -> VP:
    """The process that the samplers of `SAMPLERS` run. Raises UserError for others."""
    if not isinstance(process, VP):
        raise UserError(f"{type(process).__name__}: only gddim and euler sample this process")
    return process


def _linear(process: Process, config: DiffusionConfig, sample: SampleConfig) -> tuple[LinearProcess, dict]:
    """The process as a linear SDE, and what gDDIM or Euler take besides steps, power, lam and clip."""
    linear = ContinuousVP(replace(config, process="vp")) if isinstance(process, VP) else process
    options: dict = {"denoise": sample.denoise and linear.can_denoise, **factor_of(process, config)}
    if sample.sampler == "gddim":
        options |= {"order": sample.order, "corrector": sample.corrector}
    return linear, options


def options_that_count(sample: SampleConfig) -> dict[str, object]:
    """The settings besides steps, eta and clip that change what comes out, as far as they are not the default."""
    if sample.sampler in SAMPLERS:
        names = set(SAMPLERS[sample.sampler].options) - {"steps", "eta", "statistics", "spike_steps"}
    else:
        names = {"denoise", "grid_power"} | ({"order", "corrector"} if sample.sampler == "gddim" else set())
    names |= {"amp", "tf32", "carry", "carry_steps", "guidance", "class_label"}
    default = SampleConfig(sampler=sample.sampler)
    default = replace(default, skip="uniform")  # folders and scores were named before the solvers had their own
    return {name: getattr(sample, name) for name in sorted(names) if getattr(sample, name) != getattr(default, name)}


def uses_eta(sample: SampleConfig) -> bool:
    return sample.sampler == "ddim" or sample.sampler not in SAMPLERS


def states_config(config: DiffusionConfig, steps: int, seed: int) -> SampleConfig:
    """A deterministic sampler whose states are worth looking at: DDIM, or gDDIM where the process is not VP."""
    if config.process == "vp":
        return SampleConfig("ddim", steps=steps, seed=seed)
    return SampleConfig("gddim", steps=steps, seed=seed, order=min(2, steps - 2), denoise=False)


def require_vp(config: DiffusionConfig, what: str) -> None:
    """Raise UserError unless the process is VP."""
    require(config.process == "vp", f"--process={config.process}: {what} needs --process=vp")
