"""The leaky integrate-and-fire scan, by Triton where it serves and by torch elsewhere; its equations: `lif_rule`."""

from __future__ import annotations

from torch import Tensor

from .choice import runs_triton
from .lif_rule import LIFRule, lif_scan_reference


def lif_scan(current: Tensor, rule: LIFRule) -> Tensor:
    """Spikes {0, 1} [L, N, *S] of current [L, N, *S]; differentiable, with the surrogate's gradient.

    Keeps the L potentials u in memory, and nothing else, where a gradient is wanted. Low-precision currents (autocast)
    are integrated in float32; the spikes have the current's type, which holds 0 and 1 exactly. A potential that is not
    a number stays so, and its spikes are NaN.
    """
    if runs_triton("triton_lif", current):
        from .triton_lif import LIFScan

        return LIFScan.apply(current, rule)
    return lif_scan_reference(current, rule)
