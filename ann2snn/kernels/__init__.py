"""Time-step kernels. Callers import from here and never learn which implementation ran."""

from .torch_ref import IFRule, IFState, if_scan, spread_counts

__all__ = ["IFRule", "IFState", "if_scan", "spread_counts"]
