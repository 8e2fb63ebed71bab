"""Initial clips for the activations, from data: low-bit training then starts at useful levels, not at alpha = 6."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from .activation import QuantReLU
from .uniform import COARSE_STEPS, FINE_STEPS, SEARCH_RANGE, UniformQuantizer, fit_step

# Values kept per layer call: enough for a stable optimum, small enough to search in milliseconds.
SAMPLES_PER_CALL = 16384


@torch.no_grad()
def calibrate_activations(
    net: nn.Module, batches: Iterable[tuple], method: str = "mse", percentile: float = 99.9
) -> dict[str, float]:
    """Set every `act_alpha`, and every step of a `UniformQuantizer`, from the values it is given over the batches.

    Layers are set in the order they are called, each before it answers: a layer sees inputs that are already quantized
    with the new clips of the layers before it. With several batches the values add up, and the last call decides.
    The network runs in eval mode; modes are restored. The global random state is not touched.

    Args:
        net: any module that contains `QuantReLU` or `UniformQuantizer`; layers of 32 bits are left alone.
        batches: argument tuples for `net`.
        method: "mse": the clip with the least mean squared quantization error over the positive values;
            "percentile": that percentile of the positive values.
        percentile: in (0, 100], for method "percentile".
    Returns:
        Name of each layer that was set → its clip. Layers never called, or never given a positive value, keep their
        clip and are left out.
    Raises:
        ValueError: unknown method; percentile out of range; no batch; NaN or infinity reaches a layer (which is named).
    """
    if method not in ("mse", "percentile"):
        raise ValueError(f'method must be "mse" or "percentile", got {method!r}')
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must be in (0, 100], got {percentile}")

    layers = {name: m for name, m in net.named_modules() if isinstance(m, QuantReLU) and m.quantizes}
    clips: dict[str, float] = {}
    find = _mse_optimal_clip if method == "mse" else partial(_percentile_clip, percentile=percentile)
    hooks = _hook_layers(layers, clips, find) + _hook_uniform(net, clips, method, percentile)
    modes = {m: m.training for m in net.modules()}
    count = 0
    try:
        net.eval()
        for args in batches:
            net(*args)
            count += 1
    finally:
        for h in hooks:
            h.remove()
        for m, training in modes.items():
            m.training = training
    if count == 0:
        raise ValueError("calibrate_activations needs at least one batch")
    return clips


def _hook_layers(layers: dict[str, QuantReLU], clips: dict[str, float], find: Callable) -> list:
    """Let every layer, just before it answers, set its clip to `find(layer, values seen so far)` and note it."""
    samples: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def make_hook(name: str):
        def hook(layer: QuantReLU, args: tuple) -> None:
            new = _positive_sample(layer.preactivation(args[0]), generator, name)
            samples[name] = torch.cat([samples[name], new]) if name in samples else new
            if samples[name].numel():
                clips[name] = find(layer, samples[name])
                layer.act_alpha.fill_(clips[name])

        return hook

    return [layer.register_forward_pre_hook(make_hook(name)) for name, layer in layers.items()]


def _hook_uniform(net: nn.Module, clips: dict[str, float], method: str, percentile: float) -> list:
    """The same for every `UniformQuantizer`, whose values may be of either sign."""
    samples: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def hook(layer: UniformQuantizer, args: tuple, name: str) -> None:
        x = args[0].detach().float()
        if not x.isfinite().all():
            raise ValueError(f"calibration: the input of {name or 'the network'} has values that are not finite")
        rows = x.reshape(1, -1) if layer.channels is None else x.movedim(layer.axis, 0).flatten(1)
        if rows.shape[1] > SAMPLES_PER_CALL:
            rows = rows[:, torch.randint(rows.shape[1], (SAMPLES_PER_CALL,), generator=generator).to(rows.device)]
        samples[name] = torch.cat([samples[name], rows], 1) if name in samples else rows
        step = fit_step(samples[name], layer.lo, layer.hi, method, percentile)
        layer.scale.copy_(step.reshape(layer.scale.shape))
        clips[name] = float(step.max()) * layer.hi

    layers = [(name, m) for name, m in net.named_modules() if isinstance(m, UniformQuantizer)]
    return [layer.register_forward_pre_hook(partial(hook, name=name)) for name, layer in layers]


def _positive_sample(x: Tensor, generator: torch.Generator, name: str) -> Tensor:
    """Up to SAMPLES_PER_CALL of x's positive values, float32 [n]; negative ones have no error, whatever the clip."""
    x = x.detach().flatten().float()
    if not x.isfinite().all():
        raise ValueError(f"calibration: the input of {name or 'the network'} has values that are not finite")
    if x.numel() > SAMPLES_PER_CALL:
        x = x[torch.randint(x.numel(), (SAMPLES_PER_CALL,), generator=generator).to(x.device)]
    return x[x > 0]


def _mse_optimal_clip(layer: QuantReLU, values: Tensor) -> float:
    """Clip of least error on `values` [n]: geometric grid below their maximum, then a finer one about its best."""

    def error(clip: float) -> float:
        layer.act_alpha.fill_(clip)
        return (layer.quantize(values) - values).square().mean().item()

    top = values.max().item()
    ratio = SEARCH_RANGE ** (1 / (COARSE_STEPS - 1))
    best = min((top * ratio**i for i in range(COARSE_STEPS)), key=error)
    return min((best * ratio ** (2 * i / FINE_STEPS - 1) for i in range(FINE_STEPS + 1)), key=error)


def _percentile_clip(layer: QuantReLU, values: Tensor, percentile: float) -> float:
    """That percentile of the values [n]."""
    return values.quantile(percentile / 100).item()
