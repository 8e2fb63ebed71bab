"""The cost account: operations counted on a real run, and what they would take in energy and time steps."""

from .account import CostReport
from .count import count_calls, count_operations
from .energy import FP32, INT8, INT8_STATE16, Energy, Prices
from .layers import LayerCost

__all__ = [
    "FP32",
    "INT8",
    "INT8_STATE16",
    "CostReport",
    "Energy",
    "LayerCost",
    "Prices",
    "count_calls",
    "count_operations",
]
