"""Post-training quantization of float networks: quantizers placed by data flow, ranges from calibration calls.

A package of another name than its function, so that `ann2snn.quantize` is the function.
"""

from .attention import register_attention
from .quantize import quantize

__all__ = ["quantize", "register_attention"]
