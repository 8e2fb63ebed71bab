"""Block-wise fine-tuning: make each spiking block answer like its quantized counterpart, in data-flow order.

The teacher is the quantized ANN on the same input; the student block is fed by the already tuned SNN. `proxy` is the
published method (Yang et al., Fast-SNN, 2023, as applied to diffusion by SDM): the loss sees the SNN block's
time-averaged output, the gradient flows through the ANN block evaluated on the time-averaged inputs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..convert import SpikingDenoiser, relative_error
from ..nets import UNet
from .capture import BlockIO, capture_block

#: Blocks fed by constant currents alone: their spikes are exact, so there is nothing to tune but rounding noise.
EXACT_BLOCKS = ("head", "time_embedding")

Batch = tuple[Tensor, Tensor]  # x_t [N, C, H, W], t [N]


@dataclass(frozen=True)
class BlockTuning:
    """How one block is tuned. A block whose gap has not improved for `patience` checks stops early."""

    steps: int
    lr: float
    checks: int = 10
    patience: int = 3


@dataclass(frozen=True)
class BlockReport:
    """gap_*: relative L2 error of the block's time-averaged output on held-back inputs; best_step 0 is "unchanged"."""

    block: str
    gap_before: float
    gap_after: float
    best_step: int
    steps: int
    seconds: float


def tunable_blocks(net: UNet | SpikingDenoiser) -> list[str]:
    """Names of the blocks that can carry a conversion error of their own, in data-flow order."""
    return [name for name, _ in net.blocks() if name not in EXACT_BLOCKS]


def tied_proxy(ann: UNet, snn: SpikingDenoiser) -> UNet:
    """An ANN whose parameters *are* the SNN's: gradients through it land where the SNN reads its weights."""
    proxy = copy.deepcopy(ann)
    parameters = dict(snn.unet.named_parameters())
    for name, module in proxy.named_modules():
        for leaf in list(module._parameters):
            full = f"{name}.{leaf}" if name else leaf
            module._parameters[leaf] = parameters[full]
    return proxy.eval()


def proxy_loss(teacher_output: Tensor, student: BlockIO, proxy_block: nn.Module) -> Tensor:
    """Mean squared error with the value of the SNN block and the gradient of the ANN block (straight-through)."""
    surrogate = proxy_block(*student.inputs)
    output = surrogate + (student.output - surrogate).detach()
    return F.mse_loss(output, teacher_output)


def trainable_parameters(block: nn.Module) -> dict[str, nn.Parameter]:
    """Weights, biases and norm affines; thresholds (`act_alpha`) and weight clips stay, as published."""
    return {n: p for n, p in block.named_parameters() if not n.endswith(("act_alpha", "wgt_alpha"))}


def tune_block(
    name: str,
    teacher: UNet,
    student: SpikingDenoiser,
    proxy: UNet,
    batches: Iterator[Batch],
    held_back: list[Batch],
    tuning: BlockTuning,
    on_step: Callable[[int, float], None] | None = None,
) -> BlockReport:
    """Tune block `name` of `student` in place, keeping the weights with the smallest gap on `held_back`.

    The gap is checked about `tuning.checks` times; if no step improves on the start, the block is left as it was.
    """
    started = time.monotonic()
    block = dict(proxy.blocks())[name]
    parameters = trainable_parameters(block)
    for parameter in proxy.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters.values(), lr=tuning.lr)

    targets = [capture_block(teacher, name, x, t).output for x, t in held_back]
    before = best = block_gap(name, student, held_back, targets)
    best_step, best_state, stale, step = 0, _copy(parameters), 0, 0
    interval = max(1, tuning.steps // tuning.checks)
    while step < tuning.steps and stale < tuning.patience and before > 0:
        x, t = next(batches)
        target = capture_block(teacher, name, x, t).output
        loss = proxy_loss(target, capture_block(student, name, x, t), block)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if on_step is not None:
            on_step(step, float(loss.detach()))
        if step % interval == 0 or step == tuning.steps:
            gap = block_gap(name, student, held_back, targets)
            if gap < best:
                best, best_step, best_state, stale = gap, step, _copy(parameters), 0
            else:
                stale += 1
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(best_state[key])
            parameter.grad = None
    return BlockReport(name, before, best, best_step, step, time.monotonic() - started)


def block_gap(name: str, student: SpikingDenoiser, held_back: list[Batch], targets: list[Tensor]) -> float:
    """Relative L2 error of the block's time-averaged output over all held-back inputs."""
    outputs = [capture_block(student, name, x, t).output for x, t in held_back]
    return relative_error(torch.cat(outputs), torch.cat(targets))


@torch.no_grad()
def prediction_gap(teacher: UNet, student: SpikingDenoiser, held_back: list[Batch]) -> float:
    """Relative L2 error of the whole network's output over all held-back inputs."""
    actual = torch.cat([student(x, t) for x, t in held_back])
    return relative_error(actual, torch.cat([teacher(x, t) for x, t in held_back]))


def _copy(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}
