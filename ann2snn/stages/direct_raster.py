"""The spike raster of a directly trained network."""

from __future__ import annotations

import copy
from pathlib import Path

from ..convert.raster import record_direct_raster
from ..generate.probe import halfway_state
from ..nets.direct import DirectDenoiser
from ..run.rasters import save_rasters


def write_direct_raster(path: Path, net: DirectDenoiser, seed: int) -> None:
    """Spikes of a few neurons of every layer, in float64, halfway along the network's own sampling path.

    Raises UserError if the disk refuses.
    """
    net = copy.deepcopy(net).double().eval()
    x, t, *_ = halfway_state(net, seed)
    save_rasters(path, [record_direct_raster(net, x, t, seed=seed)])
