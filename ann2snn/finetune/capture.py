"""Run a network just far enough to see what one block is given, and run that block alone on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..convert import SpikingNetwork
from ..convert.gap import blocks_of
from ..errors import UserError


@dataclass(frozen=True)
class Chunk:
    """What a block is called with for `steps` consecutive time steps, tensors of [steps·N, …]."""

    args: tuple
    kwargs: dict
    steps: int = 1
    elapsed: int = 0


@dataclass
class BlockInput:
    """The inputs of one block in one network call. window: T, where they are currents that add up; else 0."""

    chunks: list[Chunk] = field(default_factory=list)
    window: int = 0

    def mean(self) -> tuple:
        """The time-averaged positional arguments, each [N, …]."""
        return self._means(0)

    def mean_kwargs(self) -> dict:
        return self._means(1)

    def _means(self, part: int) -> Any:
        """Of args (0) or kwargs (1): the last step's, which are averages, or those of all steps' currents."""
        given = [(chunk.args, chunk.kwargs)[part] for chunk in self.chunks]
        steps = [chunk.steps for chunk in self.chunks]
        if not self.window:
            return pytree.tree_map(lambda value: _unfolded(value, steps[-1], lambda rows: rows[-1]), given[-1])
        shares = [
            pytree.tree_map(lambda value, n=n: _unfolded(value, n, lambda rows: rows.sum(0) / self.window), values)
            for values, n in zip(given, steps, strict=True)
        ]
        leaves = [pytree.tree_leaves(share) for share in shares]
        first, spec = pytree.tree_flatten(given[0])
        sums = [sum(column) for column in zip(*leaves, strict=True)]
        return pytree.tree_unflatten([_typed(*pair) for pair in zip(sums, first, strict=True)], spec)


def _unfolded(value: object, steps: int, reduce) -> object:
    """`reduce` of a tensor's rows [steps, N, …]; anything else as it is."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return reduce(value.view(steps, len(value) // steps, *value.shape[1:]))


def _typed(mean: Any, like: Any) -> Any:
    """A mean over time steps of what stays the same in all, where it holds whole numbers, as such again."""
    is_integer = isinstance(like, Tensor) and not like.is_floating_point()
    return mean.round().to(like.dtype) if is_integer else mean


@dataclass
class BlockIO:
    """inputs: the block's arguments, averaged over time, each [N, …]; output: likewise [N, C, H, W]."""

    inputs: tuple
    output: Tensor


class _BlockReached(Exception):  # noqa: N818 - control flow, not an error
    """Leaves the forward pass at the block: what follows is not needed."""


@torch.no_grad()
def capture_inputs(net: nn.Module, name: str, *call: Tensor) -> BlockInput:
    """What block `name` of `net` is given in a call at x [N, C, H, W], t [N]; costs a forward pass up to the block.

    A network that settles or runs in chunks comes back to the block, so it is run on. Raises KeyError for an unknown
    name, UserError for a block that is called several times in a pass.
    """
    block = dict(blocks_of(_inside(net)))[name]
    clock = net.clock if isinstance(net, SpikingNetwork) else None
    settles = clock is not None and clock.config.settle_steps
    block_input, passes = BlockInput(), []

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if clock is None:
            block_input.chunks.append(Chunk(args, kwargs))
            raise _BlockReached
        if clock.chunk in passes:
            raise UserError(f"block {name} is called several times in a pass: it cannot be tuned alone")
        passes.append(clock.chunk)
        block_input.chunks.append(Chunk(args, kwargs, clock.chunk_steps, clock.elapsed))
        block_input.window = clock.spike_steps if clock.on_currents else 0
        last = not clock.is_stream or clock.elapsed + clock.chunk_steps >= clock.spike_steps
        if last and not settles:
            raise _BlockReached

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        net(*call)
    except _BlockReached:
        pass
    finally:
        handle.remove()
    return block_input


def run_block(net: nn.Module, name: str, inputs: BlockInput) -> Tensor:
    """Time-averaged output [N, …] of the block alone on recorded inputs, with a gradient if one is wanted."""
    block = dict(blocks_of(_inside(net)))[name]
    if not isinstance(net, SpikingNetwork):
        return block(*inputs.chunks[0].args, **inputs.chunks[0].kwargs)
    clock = net.clock
    answer: Tensor | None = None
    net.reset()
    try:
        for chunk in inputs.chunks:
            clock.begin(chunk.steps)
            clock.elapsed = chunk.elapsed
            answer = clock.average(block(*chunk.args, **chunk.kwargs), answer)
    finally:
        net.reset()
    assert answer is not None, f"block {name} was never reached"
    return answer


@torch.no_grad()
def capture_block(net: nn.Module, name: str, *call: Tensor) -> BlockIO:
    """Time-averaged inputs and output of block `name` of `net` in a call at x [N, C, H, W], t [N].

    Raises KeyError for a name that is not one of the network's blocks.
    """
    inputs = capture_inputs(net, name, *call)
    return BlockIO(inputs.mean(), run_block(net, name, inputs))


def _inside(net: nn.Module) -> nn.Module:
    return net.net if isinstance(net, SpikingNetwork) else net
