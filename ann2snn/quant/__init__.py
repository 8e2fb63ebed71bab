"""Quantized activations and weights with learned scales. Knows torch, and nothing of the rest of the project."""

from .activation import QuantAvgPool2d, QuantReLU, QuantSwish
from .calibrate import calibrate_activations
from .functional import (
    MIN_SCALE,
    absmax_quantize,
    apot_quantize,
    lsq_gradient_scale,
    positive_scale,
    scale_gradient,
    step_levels,
    step_quantize,
    ternary_quantize,
    uniform_levels,
    uniform_quantize,
    uniform_values,
)
from .levels import check_bits, power_levels
from .uniform import UniformQuantizer, fit_step
from .weight import FirstConv2d, LastLinear, QuantConv2d, QuantLinear, quantized_once

__all__ = [
    "MIN_SCALE",
    "FirstConv2d",
    "LastLinear",
    "QuantAvgPool2d",
    "QuantConv2d",
    "QuantLinear",
    "QuantReLU",
    "QuantSwish",
    "UniformQuantizer",
    "absmax_quantize",
    "apot_quantize",
    "calibrate_activations",
    "check_bits",
    "fit_step",
    "lsq_gradient_scale",
    "positive_scale",
    "power_levels",
    "quantized_once",
    "scale_gradient",
    "step_levels",
    "step_quantize",
    "ternary_quantize",
    "uniform_levels",
    "uniform_quantize",
    "uniform_values",
]
