"""Quantized activations with a learnable clip `act_alpha`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import apot_quantize, positive_scale, uniform_quantize
from .levels import FULL_PRECISION, check_bits


class QuantReLU(nn.Module):
    """ReLU clipped at a learned `act_alpha` and rounded to 2**bits levels; bits = 32 is the plain ReLU.

    Uniform by default: y = k * (alpha / L), k = clamp(floor(x * (L / alpha) + 0.5), 0, L), L = `levels` = 2**bits - 1.
    Only this form is a spike count, so only this form can be converted to a spiking network. With `power` the levels
    are (additive) powers of two, see `ann2snn.quant.levels.power_levels`. That the clip is learned is from Choi et al.,
    "PACT", arXiv:1805.06085; its gradient is the one in `ann2snn.quant.functional`.

    `act_alpha` (0-dim parameter) exists only for bits < 32. It is unconstrained for the optimizer; the clip in use is
    `clip()` = max(act_alpha, MIN_SCALE), which whoever converts the network must use as the threshold.

    Shape: any → the same, dtype and memory format kept.

    Raises:
        ValueError: bits not in 2..8 or 32; alpha_init not positive.
    """

    def __init__(self, bits: int, alpha_init: float = 6.0, power: bool = False, additive: bool = True) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.levels = 2**bits - 1
        self.power, self.additive = power, additive
        if not alpha_init > 0:
            raise ValueError(f"alpha_init must be positive, got {alpha_init}")
        if self.quantizes:
            self.act_alpha = nn.Parameter(torch.tensor(float(alpha_init)))

    @property
    def quantizes(self) -> bool:
        """False at full precision."""
        return self.bits != FULL_PRECISION

    @property
    def is_uniform(self) -> bool:
        """True if the levels are equally spaced (also said of full precision, which has no levels at all)."""
        return not (self.power and self.quantizes)

    def clip(self) -> Tensor:
        """The positive clip in use, 0-dim, differentiable in `act_alpha`. Raises AttributeError at full precision."""
        return positive_scale(self.act_alpha)

    def preactivation(self, x: Tensor) -> Tensor:
        """What the quantizer is given: x itself, here; subclasses put their function in front. Any shape."""
        return x

    def quantize(self, x: Tensor) -> Tensor:
        """x clipped to [0, clip] and rounded to the levels; only for bits < 32. Any shape → the same."""
        if self.power:
            return apot_quantize(x, self.clip(), self.bits, additive=self.additive)
        return uniform_quantize(x, self.clip(), self.bits)

    def unquantized(self, x: Tensor) -> Tensor:
        """The activation at full precision, given the preactivation."""
        # Not in place: the U-Net's time embedding feeds several activations.
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.preactivation(x)
        return self.quantize(x) if self.quantizes else self.unquantized(x)

    def extra_repr(self) -> str:
        if not self.quantizes:
            return f"bits={self.bits}"
        kind = "uniform" if self.is_uniform else "additive powers" if self.additive else "powers"
        return f"bits={self.bits}, {kind}"


class QuantSwish(QuantReLU):
    """x * sigmoid(x), then quantized as by `QuantReLU`; bits = 32 is the plain Swish (SiLU).

    The levels start at 0, so the negative lobe of the Swish (down to -0.28) is cut off.

    Shape: any → the same.
    """

    def preactivation(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def unquantized(self, x: Tensor) -> Tensor:
        return x


class QuantAvgPool2d(QuantReLU):
    """Average pooling, then quantized as by `QuantReLU`; bits = 32 is the plain average pooling, negative values kept.

    Shape: [N, C, H, W] → [N, C, H', W'], as `torch.nn.AvgPool2d`.

    Args:
        kernel_size, stride, padding: as in `torch.nn.AvgPool2d`.
        The others: see `QuantReLU`.
    """

    def __init__(
        self,
        kernel_size: int,
        stride: int | None = None,
        padding: int = 0,
        *,
        bits: int,
        alpha_init: float = 6.0,
        power: bool = False,
        additive: bool = True,
    ) -> None:
        super().__init__(bits, alpha_init, power, additive)
        self.pool = nn.AvgPool2d(kernel_size, stride, padding)

    def preactivation(self, x: Tensor) -> Tensor:
        return self.pool(x)

    def unquantized(self, x: Tensor) -> Tensor:
        return x
