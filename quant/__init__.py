"""The quantizers of `ann2snn.quant` under their short name, for code and pickles that say `quant`.

A checkout has it; the installed package does not claim so common a name.
"""

import sys

from ann2snn.quant import *  # noqa: F403
from ann2snn.quant import __all__, activation, calibrate, functional, levels, place, uniform, weight  # noqa: F401

# The same modules, not second copies: a layer of `quant.weight` is one of `ann2snn.quant.weight`.
sys.modules |= {
    f"{__name__}.{module.__name__.rpartition('.')[2]}": module
    for module in (activation, calibrate, functional, levels, place, uniform, weight)
}
