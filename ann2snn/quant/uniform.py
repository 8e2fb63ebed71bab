"""A uniform quantizer for any tensor, with a learned step, and the search for steps that fit data."""

import operator

import torch
from torch import Tensor, nn

from .functional import MIN_SCALE, lsq_gradient_scale, positive_scale, step_levels, step_quantize
from .levels import check_magnitude_bits

COARSE_STEPS, FINE_STEPS = 48, 16
# Searches cover steps from the one that cuts nothing off down to 1/128 of it: a 2-bit optimum of a bell shape is near
# 1/2.
SEARCH_RANGE = 2.0**-7


class UniformQuantizer(nn.Module):
    """y = step * k, k = clip(floor(x / step + 1/2), lo, hi), with the gradients of Esser et al. 2020 (LSQ).

    Levels `lo` … `hi` are 0 … 2**bits - 1, or -2**(bits - 1) … 2**(bits - 1) - 1 if signed. `scale` (parameter, 0-dim
    or [channels]) is the step before `positive_scale`; it is learned with everything else. Values of half precision are
    quantized in float32. NaN stays NaN.

    Shape: any → the same, dtype and memory format kept.

    Args:
        bits: 2..8, the sign included.
        signed: whether there are levels below 0; may be changed later.
        channels: length of `axis`, for a step per channel; None: one step for the tensor.
        axis: axis of the channels, of x as it is called; from the end if negative.
        grad_scale: multiply the step's gradient by `lsq_gradient_scale` of the values that share it and `hi`.

    Raises:
        ValueError: bits outside 2..8, channels below 1; at a call, an axis of another length than `channels`.
    """

    def __init__(
        self, bits: int, signed: bool = True, channels: int | None = None, axis: int = 1, grad_scale: bool = False
    ) -> None:
        super().__init__()
        self.bits = bits if isinstance(bits, bool) or not hasattr(bits, "__index__") else operator.index(bits)
        check_magnitude_bits(self.bits, lowest=2)
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be at least 1, or None for one step, got {channels}")
        self.signed, self.channels, self.axis, self.grad_scale = bool(signed), channels, axis, grad_scale
        self.scale = nn.Parameter(torch.ones(()) if channels is None else torch.ones(channels))
        # Axes behind the channels. Only a negative axis says before a call how many; images are assumed otherwise.
        self._trailing = -axis - 1 if axis < 0 else max(3 - axis, 0)

    @property
    def lo(self) -> int:
        """The lowest level."""
        return -(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def hi(self) -> int:
        """The highest level."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    def step(self) -> Tensor:
        """The positive step in use, differentiable in `scale`: 0-dim, or broadcastable to the x of the last call."""
        step = positive_scale(self.scale)
        return step if self.channels is None else step.reshape(-1, *[1] * self._trailing)

    def _step_for(self, x: Tensor) -> Tensor:
        if self.channels is not None:
            axis = self.axis + x.dim() if self.axis < 0 else self.axis
            if not 0 <= axis < x.dim() or x.shape[axis] != self.channels:
                raise ValueError(f"x {list(x.shape)} has no {self.channels} channels on axis {self.axis}")
            self._trailing = x.dim() - 1 - axis
        return self.step()

    def levels(self, x: Tensor) -> Tensor:
        """Integer levels k of x (any shape), as floats without gradient; float32 if x is of half precision."""
        return step_levels(x, self._step_for(x), self.lo, self.hi)

    def forward(self, x: Tensor) -> Tensor:
        step = self._step_for(x)
        factor = lsq_gradient_scale(max(x.numel() // step.numel(), 1), self.hi) if self.grad_scale else None
        return step_quantize(x, step, self.lo, self.hi, factor)

    def get_extra_state(self) -> Tensor:
        """The range, which travels with the scale in a state dict: (lo, hi)."""
        return torch.tensor([self.lo, self.hi])

    def set_extra_state(self, state: Tensor) -> None:
        lo, hi = state.tolist()
        self.signed = lo < 0
        if (lo, hi) != (self.lo, self.hi):
            raise ValueError(f"the levels {lo} to {hi} that are loaded are not of {self.bits} bits")

    def extra_repr(self) -> str:
        channels = "" if self.channels is None else f", channels={self.channels}, axis={self.axis}"
        return f"bits={self.bits}, signed={self.signed}{channels}"


@torch.no_grad()
def fit_step(values: Tensor, lo: int, hi: int, method: str = "mse", percentile: float = 99.9) -> Tensor:
    """A step for the levels lo … hi for each row of values.

    Args:
        values: [C, n], finite, any mix of signs; those that are negative count for nothing if lo is 0.
        method: "mse": least mean squared error, among steps from the one that cuts nothing off down to 1/128 of it;
            "percentile": the step that cuts off all but `percentile` % of what is not 0.
        percentile: in (0, 100].
    Returns:
        float32 [C]. A row without values to fit gets the largest step of the others, and 1 if there are none.
    """
    values = values.float()
    steps = values / hi  # the step that just reaches each value
    steps = torch.maximum(steps, values / lo) if lo < 0 else steps
    if method == "percentile":
        step = torch.where(steps > 0, steps, torch.nan).nanquantile(percentile / 100, dim=1, keepdim=True)
        step = step.nan_to_num(0.0)
    else:
        step = _least_error_step(values, steps.amax(1, keepdim=True), lo, hi)
    substitute = step.max() if step.max() > 0 else step.new_ones(())
    return torch.where(step > 0, step, substitute).clamp_min(MIN_SCALE)[:, 0]


def _least_error_step(values: Tensor, top: Tensor, lo: int, hi: int) -> Tensor:
    """Step [C, 1] of least error on values [C, n]: a geometric grid below `top` [C, 1], a finer one about its best."""
    best, least = top, torch.full_like(top, torch.inf)
    ratio = SEARCH_RANGE ** (1 / (COARSE_STEPS - 1))
    coarse = [ratio**i for i in range(COARSE_STEPS)]
    for factors in (coarse, [ratio ** (2 * i / FINE_STEPS - 1) for i in range(FINE_STEPS + 1)]):
        centre = best
        for factor in factors:
            step = (centre * factor).clamp_min(MIN_SCALE)
            error = (step_levels(values, step, lo, hi).mul_(step) - values).square_().mean(1, keepdim=True)
            best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return torch.where(top > 0, best, top)
