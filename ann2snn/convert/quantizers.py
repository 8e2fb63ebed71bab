"""The quantizers that conversion knows: how to read the levels of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..config import require
from ..errors import UserError
from ..kernels import Levels, along
from ..quant import QuantReLU, UniformQuantizer
from .other_quantizers import late_readers

#: Is given a module of the class it is for; answers None for one that quantizes nothing, which stays as it is.
Read = Callable[[Any], Levels | None]
_READERS: dict[type[nn.Module], Read] = {}


def register_quantizer(cls: type[nn.Module], read: Read) -> None:
    """Let `convert` replace modules of class `cls`, and of classes derived from it, by neurons.

    read(module) → `Levels(step, lo, hi, offset=0, before=None, level=None)`, as the module's parameters have them now:
    it is asked again at every call. Raises UserError for what is no class of modules.
    """
    require(isinstance(cls, type) and issubclass(cls, nn.Module), f"register_quantizer: {cls!r} is no class of modules")
    require(callable(read), f"register_quantizer: {read!r} is no function of a module")
    _READERS[cls] = read


def reader_of(module: nn.Module) -> Read | None:
    """How to read a quantizer's levels; None for a module that is none, or that quantizes nothing."""
    for cls, late in late_readers(read_torch_fake_quantize):
        _READERS.setdefault(cls, late)
    read = next((_READERS[base] for base in type(module).__mro__ if base in _READERS), None)
    return None if read is None or read(module) is None else read


def read_quant_relu(module: QuantReLU) -> Levels | None:
    """`quant`'s activations. Raises UserError for levels that are powers of two."""
    if not module.quantizes:
        return None
    if not module.is_uniform:
        raise UserError(
            "its activation levels are powers of two, and spikes count uniform levels; use uniform activations "
            "(APoT is for weights)"
        )
    clip, window = module.clip(), module.levels
    plain = type(module).preactivation is QuantReLU.preactivation
    return Levels(clip / window, 0, window, before=None if plain else module.preactivation, scale=window / clip)


def read_uniform(module: UniformQuantizer) -> Levels:
    """`quant`'s quantizer of any tensor."""
    axis = None if module.channels is None else module.axis
    return Levels(module.step(), module.lo, module.hi, level=module.levels, axis=axis)


def read_torch_fake_quantize(module: Any) -> Levels | None:
    """torch.ao.quantization.FakeQuantize (or torchao's), which rounds half to even."""
    if not bool(module.fake_quant_enabled[0]):
        return None
    if bool(module.observer_enabled[0]):
        raise UserError("its observer is on: it would change with every call; disable observers first")
    # Its kernels take the scale in single precision, whatever they quantize.
    step, zero = module.scale.detach().float(), module.zero_point.float()
    lows, highs = module.quant_min - zero, module.quant_max - zero
    if bool((lows != lows.flatten()[0]).any()):
        raise UserError("its channels have zero points of their own; one zero point a layer is supported")

    axis = module.ch_axis if module.is_per_channel else None
    step = step.flatten() if module.is_per_channel else step.reshape(())
    low, high, per_unit = int(lows.flatten()[0]), int(highs.flatten()[0]), step.reciprocal()
    # The kernel's arithmetic, written out: it has no form that torch.export follows.
    return Levels(
        step,
        low,
        high,
        level=lambda x: torch.round(x * along(per_unit, axis, x.dim())).clamp(low, high),
        axis=axis,
    )


register_quantizer(QuantReLU, read_quant_relu)
register_quantizer(UniformQuantizer, read_uniform)
register_quantizer(torch.ao.quantization.FakeQuantize, read_torch_fake_quantize)
