"""Quantizers as plain functions: uniform, additive powers of two, and the gradients that let their scales be learned.

One rounding rule holds everywhere: half up, `floor(v + 0.5)`. That is where an integrate-and-fire neuron that starts at
half its threshold fires, so a quantized activation and a spike count agree on ties too.

One gradient rule serves the quantizers. With d = x / alpha, q the quantized clamp(d), y = q * alpha and
inside = (lower < d < 1), for an upstream gradient g:

    dL/dx = g * inside                     dL/dalpha = sum g * (q - inside * d)

which is autograd of `alpha * (clamp(d) + detach(q - clamp(d)))` written out: the straight-through estimator with the
reparameterized clipping function of Li et al., "Additive Powers-of-Two Quantization", ICLR 2020, arXiv:1909.13144. For
uniform levels dL/dalpha is that of the step alpha / L in Esser et al., "Learned Step Size Quantization", ICLR 2020,
arXiv:1902.08153, equation 3. Only the ternary and the abs-max quantizer hand g on to x unclipped, and say why.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .levels import check_magnitude_bits, nearest_power

# Far below any clip met in training, and still safe to divide by in float32.
MIN_SCALE = 1e-6


# ---- scales --------------------------------------------------------------------------------------------------------


class _PositiveScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, alpha: Tensor) -> Tensor:
        return alpha.clamp_min(MIN_SCALE)

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g


def positive_scale(alpha: Tensor) -> Tensor:
    """max(alpha, MIN_SCALE), any shape: the value of a learned scale that is actually used.

    An optimizer may step a scale to 0 or below, where the quantizer divides by 0 or flips sign. The gradient passes
    unchanged, also below the minimum (a clamp's would be 0 there), so that training can pull the scale back. NaN stays
    NaN.
    """
    return _PositiveScale.apply(alpha) if torch.is_grad_enabled() else alpha.clamp_min(MIN_SCALE)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        return g * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x itself, with its gradient multiplied by `scale` (Esser et al. 2020, section 2.2 and appendix A).

    The usual composition `x * s + detach(x - x * s)` may change x by one rounding; this does not.
    """
    return _ScaleGradient.apply(x, scale)


def lsq_gradient_scale(numel: int, levels: int) -> float:
    """1 / sqrt(numel * levels): keeps a scale's updates in proportion to its tensor's (Esser et al. 2020, section 2.2).

    Args:
        numel: values that share the scale.
        levels: largest integer level, 2**bits - 1 unsigned or 2**(bits - 1) - 1 signed.
    """
    return 1.0 / math.sqrt(numel * levels)


# ---- the shared straight-through step ------------------------------------------------------------------------------


def _working(x: Tensor) -> Tensor:
    # bfloat16 cannot tell 200 from 200.5, so half-precision inputs (autocast) are quantized in float32.
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _like_working(step: Tensor, x: Tensor) -> Tensor:
    return step.to(torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype)


class _Quantize(torch.autograd.Function):
    """y = project(x, alpha) with the gradients of the module docstring; `ends` are (lower, upper), in units of alpha.

    alpha is 0-dim, or of x's shape with ones where values share a scale.

    The backward needs x and y alone (q = y / alpha): y is kept anyway as the next layer's input, so the only memory
    this costs beyond a ReLU's is x.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        alpha: Tensor,
        ends: tuple[float, float],
        clip_gradient: bool,
        project: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        y = project(_working(x), alpha).to(x.dtype)
        ctx.save_for_backward(x, y, alpha)
        ctx.ends, ctx.clip_gradient = ends, clip_gradient
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, y, alpha = ctx.saved_tensors
        (lower, upper), dtype = ctx.ends, x.dtype
        x, y, g = _working(x), _working(y), _working(g)
        # The gate of a ReLU's backward, once per end: g where x > lower * alpha, then where x < upper * alpha. Masks
        # with `where` take several times as long on a CPU; the backward of a hard tanh does both ends at once, but
        # wants alpha as a number: the host would wait for the device. Two buffers in all, as fresh ones cost more than
        # the arithmetic.
        gate = torch.ops.aten.threshold_backward
        buffer = alpha * upper - x
        g_inside = gate(g, x - alpha * lower if lower else x, 0)
        gate.grad_input(g_inside, buffer, 0, grad_input=g_inside)
        dx = dalpha = None
        if ctx.needs_input_grad[0]:
            dx = (g_inside if ctx.clip_gradient else g).to(dtype)
        if ctx.needs_input_grad[1]:
            # inside: g * (q - d); outside: g * q. Apart, because sum g * y - sum g_inside * x would cancel.
            rounding = torch.sub(y, x, out=buffer).mul_(g_inside).sum_to_size(alpha.shape)
            clipping = torch.sub(g, g_inside, out=buffer).mul_(y).sum_to_size(alpha.shape)
            dalpha = ((rounding + clipping) / alpha).to(alpha.dtype)
        return dx, dalpha, None, None, None


def _as_scale(alpha: Tensor | float, x: Tensor) -> Tensor:
    if isinstance(alpha, Tensor):
        return alpha
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    return torch.tensor(alpha, dtype=x.dtype, device=x.device)


def _learned_scale(alpha: Tensor | float, x: Tensor, grad_scale: float | None) -> Tensor:
    alpha = _as_scale(alpha, _working(x))
    if alpha.dim() != 0:
        raise ValueError(f"alpha must be one number or a 0-dim tensor, got shape {tuple(alpha.shape)}")
    return alpha if grad_scale is None else scale_gradient(alpha, grad_scale)


# ---- uniform -------------------------------------------------------------------------------------------------------


def _round_half_up_clamped(x: Tensor, alpha: Tensor, low: int, high: int) -> Tensor:
    return (x * (high / alpha)).add_(0.5).floor_().clamp_(low, high)


@torch.no_grad()
def uniform_levels(x: Tensor, alpha: Tensor | float, bits: int) -> Tensor:
    """Integer level, as a float: k = clamp(floor(x * (L / alpha) + 0.5), 0, L) with L = 2**bits - 1.

    k is also the number of spikes that an integrate-and-fire neuron with threshold alpha and initial charge alpha / 2
    emits in L steps of constant current x. `uniform_values(k, alpha, bits)` is the quantized activation: a spike-count
    simulation that uses these two functions equals `uniform_quantize` bit for bit.

    Args:
        x: any shape and memory format, both kept.
        alpha: positive clip, 0-dim or broadcastable to x.
        bits: 2..8.
    Returns:
        A new tensor like x, float32 if x is of half precision; it carries no gradient.
    Raises:
        ValueError: bits outside 2..8.
    """
    check_magnitude_bits(bits, lowest=2)
    x = _working(x)
    return _round_half_up_clamped(x, _as_scale(alpha, x), 0, 2**bits - 1)


def uniform_values(levels: Tensor, alpha: Tensor | float, bits: int) -> Tensor:
    """Activation of a level (or spike count), any shape: k * (alpha / L), L = 2**bits - 1; see `uniform_levels`."""
    check_magnitude_bits(bits, lowest=2)
    return levels * (_as_scale(alpha, levels) / (2**bits - 1))


def uniform_quantize(
    x: Tensor, alpha: Tensor | float, bits: int, signed: bool = False, grad_scale: float | None = None
) -> Tensor:
    """Uniform quantizer with straight-through gradients to x and alpha.

    Unsigned, for activations: L = 2**bits - 1 steps on [0, alpha]. Signed, for weights: L = 2**(bits - 1) - 1 steps on
    either side of 0 in [-alpha, alpha]. y = k * (alpha / L), k = clamp(floor(x * (L / alpha) + 0.5)).

    Args:
        x: any shape and memory format.
        alpha: clip, 0-dim tensor (may require grad) or positive number.
        bits: 2..8, the sign included.
        grad_scale: factor on alpha's gradient, see `lsq_gradient_scale`.
    Returns:
        Tensor of x's shape and dtype.
    Raises:
        ValueError: bits outside 2..8; alpha a number that is not positive, or a tensor of more dimensions than 0.
    """
    check_magnitude_bits(bits, lowest=2)
    if signed:
        high = 2 ** (bits - 1) - 1
        low, lower = -high, -1.0
    else:
        high = 2**bits - 1
        low, lower = 0, 0.0

    def project(x: Tensor, alpha: Tensor) -> Tensor:
        return _round_half_up_clamped(x, alpha, low, high).mul_(alpha / high)

    return _Quantize.apply(x, _learned_scale(alpha, x, grad_scale), (lower, 1.0), True, project)


def ternary_quantize(x: Tensor, alpha: Tensor | float, grad_scale: float | None = None) -> Tensor:
    """2-bit weights {-alpha, 0, alpha}: as `uniform_quantize(x, alpha, 2, signed=True)`, but dL/dx = g everywhere.

    With a single magnitude level a clipped gradient would freeze every weight beyond alpha, and with it the sign.
    dL/dalpha = sum g * (sign(d) where |d| >= 1, else q - d), d = x / alpha.

    Args and returns: see `uniform_quantize`.
    """

    def project(x: Tensor, alpha: Tensor) -> Tensor:
        return _round_half_up_clamped(x, alpha, -1, 1).mul_(alpha)

    return _Quantize.apply(x, _learned_scale(alpha, x, grad_scale), (-1.0, 1.0), False, project)


class _RoundToAbsMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, high: int) -> Tensor:
        # The minimum keeps an all-zero tensor at 0 instead of 0 / 0.
        top = _working(x).abs().amax().clamp_min(1e-30)
        return _round_half_up_clamped(_working(x), top, -high, high).mul_(top / high).to(x.dtype)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        return g, None


def absmax_quantize(x: Tensor, bits: int = 8) -> Tensor:
    """Signed uniform quantizer whose clip is max |x|. Nothing is cut off, so dL/dx = g.

    Used for first and last layers, where 8 bits cost little and lose little.

    Args:
        x: any shape with at least one value.
        bits: 2..8, the sign included.
    Raises:
        ValueError: bits outside 2..8; x empty.
    """
    check_magnitude_bits(bits, lowest=2)
    if x.numel() == 0:
        raise ValueError("absmax_quantize needs at least one value")
    return _RoundToAbsMax.apply(x, 2 ** (bits - 1) - 1)


@torch.no_grad()
def step_levels(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Integer level, as a float: k = clamp(floor(x / step + 0.5), low, high). NaN stays NaN.

    Args:
        x: any shape and memory format, both kept.
        step: positive, 0-dim or broadcastable to x.
    Returns:
        A new tensor like x, float32 if x is of half precision; it carries no gradient.
    """
    return _working(x).div(_like_working(step, x)).add_(0.5).floor_().clamp_(low, high)


def step_quantize(x: Tensor, step: Tensor, low: int, high: int, grad_scale: float | None = None) -> Tensor:
    """step * step_levels(x, step, low, high), with the gradients of Esser et al. 2020, equation 3, to x and step.

    Unlike `uniform_quantize` it scales by the step, not the clip, so that low and high need not mirror each other, and
    every channel may have a step of its own.

    Args:
        x: any shape and memory format.
        step: positive, 0-dim or of x's number of dimensions at most and broadcastable to x; may require grad.
        grad_scale: factor on step's gradient, see `lsq_gradient_scale`.
    Returns:
        Tensor of x's shape and dtype.
    """
    step = _like_working(step, x)
    step = step if grad_scale is None else scale_gradient(step, grad_scale)

    def project(x: Tensor, step: Tensor) -> Tensor:
        return step_levels(x, step, low, high) * step

    return _Quantize.apply(x, step, (low, high), True, project)


# ---- powers of two -------------------------------------------------------------------------------------------------


def apot_quantize(
    x: Tensor,
    alpha: Tensor | float,
    bits: int,
    signed: bool = False,
    additive: bool = True,
    grad_scale: float | None = None,
) -> Tensor:
    """Nearest of alpha * `power_levels`, with straight-through gradients to x and alpha (Li et al. 2020).

    Half way between two levels the upper one is taken (a set of measure zero, where an arg-min over an unordered list
    would depend on the list's order).

    Args:
        x: any shape and memory format.
        alpha: clip, 0-dim tensor (may require grad) or positive number.
        bits: bits of the magnitude, 1..8: all bits of an activation, all but the sign of a weight.
        signed: levels mirrored to [-alpha, 0] as well.
        additive: sums of powers of two; else plain powers.
        grad_scale: factor on alpha's gradient.
    Returns:
        Tensor of x's shape and dtype; NaN stays NaN.
    Raises:
        ValueError: bits outside 1..8; a number as alpha that is not positive.
    """
    check_magnitude_bits(bits, lowest=1)

    def project(x: Tensor, alpha: Tensor) -> Tensor:
        return nearest_power(x, alpha, bits, additive, signed)

    return _Quantize.apply(x, _learned_scale(alpha, x, grad_scale), (-1.0 if signed else 0.0, 1.0), True, project)
