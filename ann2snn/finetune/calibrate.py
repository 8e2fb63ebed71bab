"""Thresholds, initial charges and output biases set from data, without gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..distributed.world import ALONE, World
from ..nets.parts import DownSample, ResBlock, UpSample
from ..neurons import IFNeuron
from .subject import Example, Subject, subject_gap

#: Tried for every neuron layer: factors of its threshold, and shifts of its initial charge in units of θ.
THRESHOLD_FACTORS = (0.9, 0.95, 1.05, 1.1)
CHARGE_SHIFTS = (-0.2, -0.1, 0.1, 0.2)


@torch.no_grad()
def calibrate(subject: Subject, examples: list[Example], world: World = ALONE) -> None:
    """Set the subject's neurons, layer by layer, to the candidate with the smallest gap on `examples`; then its bias.

    A greedy search along one coordinate at a time, so the gap on `examples` never grows. The bias correction adds the
    mean error of each output channel to the last convolution's bias (Nagel et al., "Data-free quantization", 2019).
    """
    for module in subject.modules:
        for neuron in module.modules():
            if isinstance(neuron, IFNeuron):
                _calibrate_neuron(neuron, lambda: subject_gap(subject, examples, world))
    if len(subject.modules) == 1:
        _correct_bias(subject, examples, world)


def _calibrate_neuron(neuron: IFNeuron, gap: Callable[[], float]) -> None:
    if neuron.charge is None:
        neuron.expand((), thresholds=False, charges=True)
    charge = neuron.charge
    assert charge is not None
    _keep_best(charge, [charge + shift for shift in CHARGE_SHIFTS], gap)
    theta = getattr(neuron, "act_alpha", None)
    if theta is not None:
        _keep_best(theta, [theta * factor for factor in THRESHOLD_FACTORS], gap)


def _keep_best(parameter: nn.Parameter, candidates: list[Tensor], gap: Callable[[], float]) -> None:
    """Leave in `parameter` the value with the smallest gap: its own or one of `candidates`."""
    best, best_gap = parameter.clone(), gap()
    for value in candidates:
        parameter.copy_(value)
        value_gap = gap()
        if value_gap < best_gap:
            best, best_gap = value, value_gap
    parameter.copy_(best)


def _correct_bias(subject: Subject, examples: list[Example], world: World) -> None:
    bias = output_bias(subject.modules[0])
    if bias is None:
        return
    before, gap = bias.clone(), subject_gap(subject, examples, world)
    errors = torch.cat([e.target - subject.output(e) for e in examples])
    bias += (world.sum(errors.mean(dim=(0, 2, 3))) / world.size).to(bias)
    if subject_gap(subject, examples, world) > gap:
        bias.copy_(before)


def output_bias(block: nn.Module) -> Tensor | None:
    """Bias [C] that a block adds to its output last; None where that is not known."""
    if isinstance(block, ResBlock):
        return getattr(block.block2[-1], "bias", None)
    if isinstance(block, (DownSample, UpSample)):
        return getattr(block.main, "bias", None)
    return getattr(block[-1], "bias", None) if isinstance(block, nn.Sequential) else None
