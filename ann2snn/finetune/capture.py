"""Run a network just far enough to see what one block is given, and run that block alone on it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..convert import SpikingDenoiser
from ..nets import UNet


@dataclass(frozen=True)
class Chunk:
    """What a block is called with for `steps` consecutive time steps: args, each [steps·N, …]."""

    args: tuple[Tensor, ...]
    steps: int = 1
    input_on: bool = True
    elapsed: int = 0


@dataclass
class BlockInput:
    """The inputs of one block in one network call. window: time steps that a sum over all chunks is divided by."""

    chunks: list[Chunk] = field(default_factory=list)
    times: Tensor | None = None
    window: int = 1

    def mean(self) -> tuple[Tensor, ...]:
        """The time-averaged arguments, each [N, …]."""
        sums: tuple[Tensor, ...] = ()
        for chunk in self.chunks:
            values = [v.view(chunk.steps, len(v) // chunk.steps, *v.shape[1:]).sum(0) for v in chunk.args]
            sums = tuple(a + b for a, b in zip(sums, values, strict=True)) if sums else tuple(values)
        return tuple(value / self.window for value in sums)


@dataclass
class BlockIO:
    """inputs: the block's arguments, averaged over time, each [N, …]; output: likewise [N, C, H, W]."""

    inputs: tuple[Tensor, ...]
    output: Tensor


class _BlockReached(Exception):  # noqa: N818 - control flow, not an error
    """Leaves the forward pass at the block: what follows is not needed."""


@torch.no_grad()
def capture_inputs(net: UNet | SpikingDenoiser, name: str, x: Tensor, t: Tensor) -> BlockInput:
    """What block `name` of `net` is given at x [N, C, H, W], t [N]; costs a forward pass up to the block.

    A network that settles or runs in chunks comes back to the block, so it is run on. Raises KeyError for an unknown
    name.
    """
    block = dict(net.blocks())[name]
    clock = net.clock if isinstance(net, SpikingDenoiser) else None
    settles = clock is not None and net.spiking.settle_steps
    found = BlockInput(times=t)

    def hook(module: nn.Module, args: tuple) -> None:
        if clock is None:
            found.chunks.append(Chunk(args))
        else:
            found.chunks.append(Chunk(args, clock.chunk_steps, clock.input_on, clock.elapsed))
            found.window = clock.window
        if clock is None or (not settles and clock.elapsed + clock.chunk_steps >= clock.window):
            raise _BlockReached

    handle = block.register_forward_pre_hook(hook)
    try:
        net(x, t)
    except _BlockReached:
        pass
    finally:
        handle.remove()
    return found


def run_block(net: UNet | SpikingDenoiser, name: str, inputs: BlockInput) -> Tensor:
    """Time-averaged output [N, …] of the block alone on recorded inputs, with a gradient if one is wanted."""
    block = dict(net.blocks())[name]
    if not isinstance(net, SpikingDenoiser):
        return block(*inputs.chunks[0].args)
    clock, total = net.clock, None
    net.reset()
    try:
        clock.times = inputs.times
        for chunk in inputs.chunks:
            clock.chunk_steps, clock.input_on, clock.elapsed = chunk.steps, chunk.input_on, chunk.elapsed
            out = clock.unfold(block(*chunk.args)).sum(0)
            total = out if total is None else total + out
    finally:
        net.reset()
    return total / inputs.window


@torch.no_grad()
def capture_block(net: UNet | SpikingDenoiser, name: str, x: Tensor, t: Tensor) -> BlockIO:
    """Time-averaged inputs and output of block `name` of `net` at x [N, C, H, W], t [N].

    Raises KeyError for a name that is not one of `net.blocks()`.
    """
    inputs = capture_inputs(net, name, x, t)
    return BlockIO(inputs.mean(), run_block(net, name, inputs))
