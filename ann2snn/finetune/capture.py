"""Run a network just far enough to see one block's inputs and output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..convert import SpikingDenoiser
from ..nets import UNet


@dataclass
class BlockIO:
    """inputs: the block's arguments, averaged over time, each [N, …]; output: likewise [N, C, H, W]."""

    inputs: tuple[Tensor, ...]
    output: Tensor


class _BlockReached(Exception):  # noqa: N818 - control flow, not an error
    """Leaves the forward pass once the block has answered: what follows is not needed."""


@torch.no_grad()
def capture_block(net: UNet | SpikingDenoiser, name: str, x: Tensor, t: Tensor) -> BlockIO:
    """Time-averaged inputs and output of block `name` of `net` at x [N, C, H, W], t [N].

    Raises KeyError for a name that is not one of `net.blocks()`.
    """
    block = dict(net.blocks())[name]
    clock = net.clock if isinstance(net, SpikingDenoiser) else None
    one_chunk = clock is None or not net.spiking.settle_steps
    sums: list[Tensor] = []

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        values = [v if clock is None else clock.unfold(v).sum(0) for v in (*args, output)]
        sums[:] = [a + b for a, b in zip(sums, values, strict=True)] if sums else values
        if one_chunk:
            raise _BlockReached

    handle = block.register_forward_hook(hook)
    try:
        net(x, t)
    except _BlockReached:
        pass
    finally:
        handle.remove()
    window = 1 if clock is None else clock.window
    means = [value / window for value in sums]
    return BlockIO(tuple(means[:-1]), means[-1])
