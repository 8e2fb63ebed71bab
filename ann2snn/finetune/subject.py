"""What is tuned: one block, or the whole network, seen through the same four operations."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..convert import SpikingNetwork
from ..convert.gap import blocks_of
from ..distributed.world import ALONE, World
from .capture import BlockInput, BlockIO, capture_block, capture_inputs, run_block

#: Blocks fed by constant currents alone: their spikes are exact, so there is nothing to tune but rounding noise.
EXACT_BLOCKS = ("head", "time_embedding")
#: Name of the last pass, in which all blocks are tuned together on the network's prediction.
NETWORK = "network"
LEARNABLE = ("weights", "thresholds", "charges")

Batch = tuple[Tensor, ...]  # x_t [N, C, H, W], t [N], and y [N] of a network that is told classes
Inputs = TypeVar("Inputs")  # of a subject


@dataclass
class Example(Generic[Inputs]):
    """inputs: what the subject is run on; target: the quantized ANN's output for it [N, C, H, W]."""

    inputs: Inputs
    target: Tensor


class Networks(NamedTuple):
    """teacher: the quantized ANN. student: what is tuned. proxy: the ANN that shares its parameters, `tied_proxy`."""

    teacher: nn.Module
    student: SpikingNetwork
    proxy: nn.Module


class Subject(Protocol[Inputs]):
    """Something with inputs, a spiking output, a teacher's target and a differentiable stand-in."""

    name: str
    student: SpikingNetwork
    modules: list[nn.Module]

    def example(self, batch: Batch) -> Example[Inputs]: ...

    def output(self, example: Example[Inputs]) -> Tensor: ...

    def stand_in(self, example: Example[Inputs]) -> Tensor: ...


class BlockSubject:
    """One block of the student, fed by the student's own earlier blocks, against the teacher's block."""

    def __init__(self, name: str, networks: Networks) -> None:
        self.name = name
        self.teacher, self.student, proxy = networks
        self.modules = [dict(blocks_of(self.student.net))[name]]
        self.proxy_block = dict(blocks_of(proxy))[name]

    def example(self, batch: Batch) -> Example[BlockInput]:
        target = capture_block(self.teacher, self.name, *batch).output
        return Example(capture_inputs(self.student, self.name, *batch), target)

    def output(self, example: Example[BlockInput]) -> Tensor:
        return run_block(self.student, self.name, example.inputs)

    def stand_in(self, example: Example[BlockInput]) -> Tensor:
        return self.proxy_block(*example.inputs.mean(), **example.inputs.mean_kwargs())


class NetworkSubject:
    """All tunable blocks at once, on the prediction."""

    def __init__(self, networks: Networks) -> None:
        self.name = NETWORK
        self.teacher, self.student, self.proxy = networks
        self.modules = [module for name, module in blocks_of(self.student.net) if name not in EXACT_BLOCKS]

    def example(self, batch: Batch) -> Example[Batch]:
        with torch.no_grad():
            return Example(batch, self.teacher(*batch))

    def output(self, example: Example[Batch]) -> Tensor:
        return self.student(*example.inputs)

    def stand_in(self, example: Example[Batch]) -> Tensor:
        return self.proxy(*example.inputs)


def make_subject(name: str, networks: Networks) -> Subject[Any]:
    """The subject called `name`: a block's name, or `NETWORK`. Raises KeyError for an unknown name."""
    if name == NETWORK:
        return NetworkSubject(networks)
    return BlockSubject(name, networks)


def tunable_blocks(net: nn.Module) -> list[str]:
    """Names of the blocks that can carry a conversion error of their own, in data-flow order."""
    inside = net.net if isinstance(net, SpikingNetwork) else net
    blocks = blocks_of(inside)
    return [name for name, block in blocks if name not in EXACT_BLOCKS and trainable_parameters(block)]


def tied_proxy(ann: nn.Module, snn: SpikingNetwork) -> nn.Module:
    """An ANN whose parameters *are* the SNN's: gradients through it land where the SNN reads its weights."""
    proxy = copy.deepcopy(ann)
    parameters = dict(snn.net.named_parameters())
    for name, module in proxy.named_modules():
        for leaf in list(module._parameters):
            full = f"{name}.{leaf}" if name else leaf
            module._parameters[leaf] = parameters[full]
    return proxy.eval()


def expand_neurons(snn: SpikingNetwork, learn: tuple[str, ...], granularity: str) -> None:
    """Give every neuron layer the thresholds and charges that are to be learned, per "layer" or per "channel".

    Must come before `tied_proxy`, which shares the thresholds. The network computes what it did before.
    """
    channels: dict[nn.Module, tuple[int, ...]] = {}
    neurons = [neuron for _, neuron in snn.neurons()]

    def remember(module: nn.Module, args: tuple) -> None:
        channels[module] = (args[0].shape[1], *[1] * (args[0].dim() - 2))

    handles = [neuron.register_forward_pre_hook(remember) for neuron in neurons]
    args, kwargs = snn.example()
    try:
        with torch.no_grad():
            snn(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    for neuron in neurons:
        shape = channels[neuron] if granularity == "channel" else ()
        neuron.expand(shape, thresholds="thresholds" in learn, charges="charges" in learn)


def trainable_parameters(module: nn.Module, learn: tuple[str, ...] = ("weights",)) -> dict[str, nn.Parameter]:
    """Parameters of `module` to learn: "weights" (biases and norm affines too), "thresholds", "charges".

    As published, weight clips always stay, and thresholds do unless asked for.
    """
    kinds = {"act_alpha": "thresholds", "charge": "charges", "wgt_alpha": None}
    named = module.named_parameters()
    return {name: p for name, p in named if kinds.get(name.rpartition(".")[2], "weights") in learn}


def proxy_loss(teacher_output: Tensor, student: BlockIO, proxy_block: nn.Module) -> Tensor:
    """Mean squared error with the value of the SNN block and the gradient of the ANN block (straight-through)."""
    return straight_through_loss(teacher_output, student.output, proxy_block(*student.inputs))


def straight_through_loss(target: Tensor, value: Tensor, stand_in: Tensor) -> Tensor:
    """Mean squared error of `value` to `target`, with the gradient of `stand_in` in its place."""
    return F.mse_loss(stand_in + (value - stand_in).detach(), target)


def subject_loss(subject: Subject, example: Example, method: str) -> Tensor:
    """The loss of `--ft_method`. proxy: gradient of the stand-in ANN. bptt: through the spiking dynamics."""
    if method == "bptt":
        return F.mse_loss(subject.output(example), example.target)
    with torch.no_grad():
        value = subject.output(example)
    return straight_through_loss(example.target, value, subject.stand_in(example))


@torch.no_grad()
def subject_gap(subject: Subject, examples: list[Example], world: World = ALONE) -> float:
    """Relative L2 error of the time-averaged output over all examples of all processes, the same on each."""
    return shared_error(([subject.output(e), e.target] for e in examples), world)


def shared_error(pairs: Iterable[Sequence[Tensor]], world: World) -> float:
    """`relative_error` of the (actual, expected) of all processes together: ‖actual − expected‖₂ / ‖expected‖₂."""
    squares = torch.zeros(2, dtype=torch.float64)
    for actual, expected in pairs:
        difference = (actual.double() - expected.double()).square().sum()
        squares += torch.stack([difference, expected.double().square().sum()]).cpu()
    error, scale = world.sum(squares).sqrt().tolist()
    return error / scale if scale > 0 else error
