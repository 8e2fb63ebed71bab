"""The spike raster of a directly trained network."""

from __future__ import annotations

import copy
from pathlib import Path

from ..convert.raster import record_direct_raster
from ..io.rasters import save_rasters
from ..nets.direct import DirectDenoiser
from ..probe import sampler_states


def write_direct_raster(path: Path, net: DirectDenoiser, seed: int) -> None:
    """Spikes of a few neurons of every layer, in float64, halfway along the network's own sampling path.

    Raises UserError if the disk refuses.
    """
    net = copy.deepcopy(net).double().eval()
    x, t = sampler_states(net, 1, 3, seed)
    middle = slice(len(x) // 2, len(x) // 2 + 1)
    save_rasters(path, [record_direct_raster(net, x[middle], t[middle], seed=seed)])
