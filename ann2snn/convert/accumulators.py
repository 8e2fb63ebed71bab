"""What a device keeps of a linear map that reads levels: one sum per output, to which events add weights.

    sum ← sum + Σ weight · event                  once for every change of a level; nothing is ever computed again
    answer = sum · scale + bias                   scale: what one unit of the sum is worth

Whole weights and whole sums (int32) are exact. Sums of floating point are rounded to their type each time that the
events of an input channel have arrived: of a linear layer, at every event. (A device may round more often.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import check_choice, check_int, require
from .gap import relative_error

KINDS = {name: getattr(torch, name) for name in ("int32", "float64", "float32", "float16", "bfloat16")}
LARGEST_SUM = 2**31 - 1
TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


@dataclass(frozen=True)
class Arithmetic:
    """kind: type of the sums, one of `KINDS`. weight_bits: of whole weights, the sign included; used by int32 alone."""

    kind: str = "int32"
    weight_bits: int = 8

    def __post_init__(self) -> None:
        check_choice(self.kind, KINDS, "accumulators")
        bits = check_int(self.weight_bits, "weight_bits")
        require(2 <= bits <= 16, f"weight_bits={bits}: use 2 to 16")

    @property
    def is_whole(self) -> bool:
        return self.kind == "int32"

    @property
    def working(self) -> torch.dtype:
        """In what one event's share of a sum is computed."""
        return torch.float64 if self.kind in ("int32", "float64") else torch.float32


@dataclass(frozen=True)
class LinearMap:
    """A convolution or linear function, x ↦ function(x, weight, bias, **options), as it was called."""

    function: Callable
    options: dict
    bias: Tensor | None
    dims: int  # of the weight

    @classmethod
    def of(cls, function: Callable, args: tuple, kwargs: dict) -> tuple[LinearMap, Tensor, Tensor]:
        """(the map, its input, its weight)."""
        given = dict(zip(_TRANSPOSED if function in TRANSPOSED else _CONV, args, strict=False)) | kwargs
        x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
        return cls(function, given, bias, weight.dim()), x, weight

    @property
    def channels(self) -> int:
        """The axis of channels, of its input and its answer, from the end."""
        return -1 if self.function is F.linear else 1 - self.dims

    @property
    def groups(self) -> int:
        return self.options.get("groups", 1)

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Without bias."""
        return self.function(x, weight, None, **self.options)

    def by_channel(self, x: Tensor, weight: Tensor) -> Iterator[Tensor]:
        """What each input channel (one of every group) adds to the answer; channels of zeros are left out."""
        each = x.unflatten(self.channels, (self.groups, -1))
        busy = each.transpose(0, self.channels).flatten(1).any(1)
        split = weight.unflatten(0, (self.groups, -1)) if self.function in TRANSPOSED else weight
        for channel in busy.nonzero().flatten().tolist():
            part = split[:, channel] if self.function in TRANSPOSED else split[:, channel : channel + 1]
            yield self(each.select(self.channels, channel), part)

    def per_output(self, values: Tensor) -> Tensor:
        """values [C_out] as they are broadcast to answers."""
        return values.view(-1, *[1] * (-self.channels - 1))

    def per_input(self, values: Tensor, weight: Tensor) -> Tensor:
        """values [C_in] as they are broadcast to the weight."""
        if self.function in TRANSPOSED:
            return values.view(-1, *[1] * (weight.dim() - 1))
        rows = values.view(self.groups, -1).repeat_interleave(len(weight) // self.groups, 0)
        return rows.view(*rows.shape, *[1] * (weight.dim() - 2))


class Accumulator:
    """The sums of one linear map, empty at first.

    worth: Δ of the levels that it reads, [] or [C_in]; where it differs between channels, weights carry it.
    integer_weight: its weights as (whole numbers, their step []), where they are that already. largest: magnitude of a
    level. Raises UserError where sums may not fit.

    weight: what an event of one level adds, in float. scale: see the module. levels: what has been added up so far.
    """

    def __init__(
        self,
        linear: LinearMap,
        weight: Tensor,
        worth: Tensor,
        arithmetic: Arithmetic,
        integer_weight: tuple[Tensor, Tensor] | None,
        largest: int,
    ) -> None:
        self.arithmetic = arithmetic
        if worth.dim():
            weight, integer_weight = weight * linear.per_input(worth, weight), None
        scale = weight.new_ones(()) if worth.dim() else worth
        if arithmetic.is_whole:
            weight, step = integer_weight or _whole(linear, weight, arithmetic.weight_bits)
            scale = step * scale
            sums = weight.abs().double().flatten(1).sum(1) if linear.function not in TRANSPOSED else weight.abs().sum()
            most = int(sums.max()) * largest
            require(
                most <= LARGEST_SUM,
                f"its sums may reach {most:,}, which int32 does not hold: use fewer weight_bits than "
                f"{arithmetic.weight_bits}, or accumulators='float64'",
            )
        self.weight, self.scale = weight.to(arithmetic.working), scale
        self.empty()

    def empty(self) -> None:
        """Begin anew: all levels have to be sent again."""
        self.sums: Tensor | None = None
        self.levels: Tensor | None = None
        self.linear: LinearMap | None = None

    def add(self, linear: LinearMap, levels: Tensor) -> Tensor:
        """Send what differs from the levels so far, [N, C_in, …] → the sums [N, C_out, …]."""
        levels = levels.to(self.arithmetic.working, copy=True)  # a network may write into what a neuron answered
        events = levels if self.levels is None else levels - self.levels
        self.levels, self.linear = levels, linear
        if self.arithmetic.is_whole:
            share = linear(events, self.weight).round_().to(torch.int32)
            self.sums = share if self.sums is None else self.sums + share
            return self.sums
        for share in linear.by_channel(events, self.weight):
            share = share if self.sums is None else share + self.sums
            self.sums = share.to(KINDS[self.arithmetic.kind])
        if self.sums is None:  # all is silent
            self.sums = linear(events, self.weight).to(KINDS[self.arithmetic.kind])
        return self.sums

    def error(self) -> float:
        """Relative L2 distance of the sums to those that the levels have now, computed anew in float64; empty: 0."""
        if self.sums is None or self.levels is None or self.linear is None:
            return 0.0
        return relative_error(self.sums, self.linear(self.levels.double(), self.weight.double()))


def _whole(linear: LinearMap, weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(whole numbers of so many bits, sign included; step), one step per output channel: the nearest, half to even.

    Transposed convolutions have one step for all.
    """
    largest = weight.abs().amax() if linear.function in TRANSPOSED else weight.abs().flatten(1).amax(1)
    step = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1)
    rows = step.view(-1, *[1] * (weight.dim() - 1)) if step.dim() else step
    return (weight / rows).round(), linear.per_output(step) if step.dim() else step
