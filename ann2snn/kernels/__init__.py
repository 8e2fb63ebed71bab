"""Time-step kernels. Callers import from here and never learn which implementation ran."""

from .lif import SURROGATES, LIFRule, lif_scan
from .torch_ref import IFRule, IFState, if_scan, spread_counts

__all__ = ["SURROGATES", "IFRule", "IFState", "LIFRule", "if_scan", "lif_scan", "spread_counts"]
