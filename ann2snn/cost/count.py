"""Operation counts by hooks on a real run; definitions of effective operations follow NeuroBench.

NeuroBench (Yik et al., arXiv:2304.04640): an operation is effective if neither its input nor its weight is zero;
biases do not count; a layer accumulates (AC) if all its inputs are in {−1, 0, 1}, and multiplies (MAC) otherwise.
Here a layer accumulates as well if its inputs are unit events times one factor per channel, the threshold of the
neuron that sent them, since that factor folds into the weights; and the channels of a directly trained network's
layer are told apart one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import SpikingConfig
from ..convert import SpikingNetwork
from ..errors import UserError
from ..nets import UNet
from ..nets.direct import DirectDenoiser
from .account import CostReport
from .converted import UNetCounter
from .direct import DirectCounter


def count_operations(
    net: SpikingNetwork | UNet | DirectDenoiser,
    x: Tensor,
    t: Tensor,
    spiking: SpikingConfig | None = None,
    batch_size: int = 16,
) -> CostReport:
    """Count what `net`, in eval mode, does for x [N, C, H, W], t [N]: averages per image and network call.

    net: a converted network, run as `spiking` says (default: as it is set), settling included; a directly trained
    one; or a U-Net, whose `mac` skips zero activations and whose `dense` does not. `layer_sync` runs with its spike
    trains materialised, and each norm and each layer with real inputs once per window, on the window's sum.

    A layer that sees the same real input in all steps of the window (head, first linear layer of the time embedding,
    first norm) is a constant current: computed, and counted, once per call. Other real inputs count in every step.

    Raises ValueError for an empty batch, UserError for another network: attention's products would go uncounted.
    """
    if not isinstance(net, SpikingNetwork | UNet | DirectDenoiser):
        raise UserError(f"cannot count the operations of a {type(net).__name__}: give a U-Net or a spiking network")
    if not len(x):
        raise ValueError("no images to count operations on")
    counter = DirectCounter(net) if isinstance(net, DirectDenoiser) else UNetCounter(net)
    snn = net if isinstance(net, SpikingNetwork) else None
    settle_steps = 0
    with torch.no_grad(), counter.attached(), contextlib.ExitStack() as stack:
        used = None if isinstance(net, UNet) else net.spiking
        if snn is not None:
            used = spiking or used
            stack.enter_context(snn.running_as(used, materialise=used.schedule == "layer_sync"))
            stack.enter_context(snn.monitored(counter))
            batch_size = stack.enter_context(_window_uncut(snn, batch_size))
        for start in range(0, len(x), batch_size):
            net(x[start : start + batch_size], t[start : start + batch_size])
            settle_steps = max(settle_steps, snn.last_settle_steps if snn else 0)
    depth, steps_run = None if used is None else net.depth, counter.image_steps / len(x)
    return CostReport(used, net.config.bits, len(x), depth, settle_steps, steps_run, counter.layers(len(x)))


ALL_STEPS = 2**31  # more than any window or settling has


@contextlib.contextmanager
def _window_uncut(snn: SpikingNetwork, batch_size: int) -> Iterator[int]:
    """Run all steps of a window at once inside the context, as a constant current is told by its whole window.

    Yields how many images to take at a time: so many that no more rows are computed at once than in chunks.
    """
    size, window = snn.spike_chunk, snn.clock.spike_steps
    snn.spike_chunk = ALL_STEPS
    try:
        yield max(1, batch_size * size // window) if 0 < size < window else batch_size
    finally:
        snn.spike_chunk = size
