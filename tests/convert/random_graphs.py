"""Random networks of every kind of part, and an executor that runs one without a common clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ann2snn import quantize
from quant import QuantReLU, UniformQuantizer

CHANNELS, SIZE, ROWS = 4, 4, 2


@dataclasses.dataclass
class Answer:
    sample: Tensor
    extra: tuple


class Attention(nn.Module):
    """Softmax attention over the pixels, with a quantizer on each factor."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.projections = nn.ModuleDict({name: nn.Linear(CHANNELS, CHANNELS) for name in "qkvo"})
        self.quantizers = nn.ModuleDict({name: make() for name in "qkvo"})

    def forward(self, x: Tensor, *, scale: float = 0.5) -> Tensor:
        h = x.flatten(2).transpose(1, 2)
        q, k, v = (self.quantizers[name](self.projections[name](h)) for name in "qkv")
        h = (q @ k.transpose(1, 2) * scale).softmax(-1) @ v
        return x + self.projections["o"](self.quantizers["o"](h)).transpose(1, 2).view_as(x)


class TorchAttention(nn.Module):
    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.attention, self.before, self.behind = nn.MultiheadAttention(CHANNELS, 2, batch_first=True), make(), make()

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x).flatten(2).transpose(1, 2)
        return x + self.behind(self.attention(h, h, h, need_weights=False)[0]).transpose(1, 2).view_as(x)


class Product(nn.Module):
    """Two branches, multiplied: a gate."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(_conv(), make()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = (branch(x) for branch in self.branches)
        return a * b.sigmoid() + x


class Skip(nn.Module):
    """Concatenation with what was there before; the activation is called twice."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv, self.join, self.act = _conv(), nn.Conv2d(2 * CHANNELS, CHANNELS, 1), make()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.join(torch.cat([self.act(self.conv(x)), x], 1)))


class Repeated(nn.Module):
    """One block, registered twice and run three times."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        block = nn.Sequential(_conv(), make())
        self.blocks, self.again = nn.ModuleList([block, block]), block

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.again(x)


class InPlace(nn.Module):
    """Writes into what the quantizer answered."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv, self.act = _conv(), make()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.conv(x))
        h[:, 1:] += x[:, :-1]
        return F.relu_(h.mul_(0.7)) - x.mul_(0.5)


class Norm(nn.Module):
    def __init__(self, make: Callable[[], nn.Module], norm: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.act, self.quantizer, self.conv = norm, act, make(), _conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.quantizer(self.act(self.norm(x)))) + x


def _conv() -> nn.Module:
    return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)


NORMS = {
    "batch": lambda: nn.BatchNorm2d(CHANNELS),
    "group": lambda: nn.GroupNorm(2, CHANNELS),
    "layer": lambda: nn.LayerNorm([CHANNELS, SIZE, SIZE]),
    "instance": lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
}
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "inplace": lambda: nn.ReLU(inplace=True)}
BLOCKS = {kind.__name__: kind for kind in (Attention, TorchAttention, Product, Skip, Repeated, InPlace)}
for norm_name, norm in NORMS.items():
    for act_name, act in ACTIVATIONS.items():
        BLOCKS[f"{norm_name}-{act_name}"] = lambda make, norm=norm, act=act: Norm(make, norm(), act())


class Graph(nn.Module):
    """A stem, blocks nested in containers, a head; called with a tensor, a time and a keyword argument."""

    def __init__(self, kinds: list[str], answer: str, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.answer = answer
        self.stem, self.time = nn.Conv2d(1, CHANNELS, 3, padding=1), nn.Sequential(nn.Linear(1, CHANNELS), make())
        blocks = [BLOCKS[kind](make) for kind in kinds]
        half = len(blocks) // 2
        self.parts = nn.ModuleDict({"down": nn.ModuleList(blocks[:half]), "up": nn.Sequential(*blocks[half:])})
        self.head = nn.ModuleList([make(), nn.Conv2d(CHANNELS, 1, 1)])

    def forward(self, x: Tensor, t: Tensor, *, shifts: dict | None = None) -> object:
        h = self.stem(x) + self.time(t[:, None])[..., None, None]
        if shifts is not None:
            h += shifts.pop("shift")
        for block in self.parts["down"]:
            h = block(h)
        h = self.parts["up"](h)
        y = self.head[1](self.head[0](h))
        answers = {"tensor": y, "tuple": (y, h), "dict": {"y": y, "h": [h]}, "dataclass": Answer(y, (h,))}
        return answers[self.answer]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to make a network: quantized by hand or by `quantize`, from a seed."""

    kinds: tuple[str, ...]
    answer: str
    bits: int
    signed: bool
    by_hand: str  # "uniform", "channel", "relu", or "" for `quantize`
    seed: int

    def network(self) -> Graph:
        make = self._quantizer if self.by_hand else nn.Identity
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            net = Graph(list(self.kinds), self.answer, make).double().eval()
            for module in net.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    nn.init.normal_(module.weight, std=1.2 * module.weight[0].numel() ** -0.5)
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.normal_(module.running_mean, std=0.3)
                    nn.init.uniform_(module.running_var, 0.5, 2)
                if isinstance(module, UniformQuantizer):
                    nn.init.uniform_(module.scale, 2.0**-self.bits, 4 * 2.0**-self.bits)
                if isinstance(module, QuantReLU):
                    nn.init.uniform_(module.act_alpha, 0.7, 2.0)
        if self.by_hand:
            return net
        calls = [self.call(100 + index) for index in range(2)]
        return quantize(net, self.bits, calls, signed=self.signed or "auto")

    def _quantizer(self) -> nn.Module:
        if self.by_hand == "relu":
            return QuantReLU(self.bits)
        return UniformQuantizer(self.bits, self.signed)

    def call(self, seed: int, like: tuple | None = None, change: float = 1.0) -> tuple[tuple, dict]:
        """Arguments, of one's own or like others but for a `change`."""
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        fresh = [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((ROWS, 1, SIZE, SIZE), (ROWS,))]
        if like is not None:
            old = like[0]
            fresh = [(1 - change) * a + change * b for a, b in zip(old, fresh, strict=True)]
        return (fresh[0], fresh[1]), {"shifts": {"shift": torch.full((1,), 0.1, dtype=torch.float64)}}


@st.composite
def recipes(draw, most: int = 4) -> Recipe:
    by_hand = draw(st.sampled_from(["uniform", "relu", ""]))
    return Recipe(
        kinds=tuple(draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=most))),
        answer=draw(st.sampled_from(["tensor", "tuple", "dict", "dataclass"])),
        bits=draw(st.integers(2, 6)),
        signed=draw(st.booleans()),
        by_hand=by_hand,
        seed=draw(st.integers(0, 10_000)),
    )


class AsynchronousExecutor:
    """Runs a quantized network with neurons that fire when they please, independently of `ann2snn.neurons`.

    In every pass each neuron may be held back with a probability of its layer's; one that is not moves its level by at
    most `most` towards what it reads. Levels of layers that lag behind are what others read. Ends when a pass in which
    nobody was held back moves nothing.
    """

    def __init__(self, net: nn.Module, seed: int, most: int) -> None:
        self.net, self.most = net, most
        self.generator = torch.Generator().manual_seed(seed)
        self.levels: dict[tuple[nn.Module, int], Tensor] = {}
        self.holds = {m: float(torch.rand((), generator=self.generator)) * 0.9 for m in quantizers(net)}

    def run(self, call: Callable[[nn.Module], object]) -> object:
        """What the network answers once it is silent. call: calls it."""
        for attempt in range(10_000):
            everybody = attempt % 8 == 7
            answer, moved = self._pass(call, everybody)
            if everybody and not moved:
                return answer
        raise AssertionError("never silent")

    def _pass(self, call: Callable[[nn.Module], object], everybody: bool) -> tuple[object, bool]:
        turns: dict[nn.Module, int] = {}
        moved = False

        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            nonlocal moved
            turn = turns[module] = turns.get(module, -1) + 1
            step, low, high, target = read(module, args[0])
            level = self.levels.setdefault((module, turn), torch.zeros_like(target).clamp(low, high))
            event = (target - level).clamp(-self.most, self.most)
            if not everybody:
                event = event * (torch.rand(event.shape, generator=self.generator) >= self.holds[module])
            moved = moved or bool(event.any())
            level += event
            assert low <= level.min() and level.max() <= high
            return level * step

        handles = [module.register_forward_hook(hook) for module in quantizers(self.net)]
        try:
            with torch.no_grad():
                return call(self.net), moved
        finally:
            for handle in handles:
                handle.remove()


def quantizers(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, (QuantReLU, UniformQuantizer))]


def read(module: nn.Module, x: Tensor) -> tuple[Tensor, int, int, Tensor]:
    """(step, lo, hi, the level of each value), from the quantizers' formulas."""
    if isinstance(module, QuantReLU):
        step, low, high = module.act_alpha.detach() / module.levels, 0, module.levels
        return step, low, high, (x * (module.levels / module.act_alpha) + 0.5).floor().clamp(low, high).detach()
    step = module.step().detach()
    return step, module.lo, module.hi, (x / step + 0.5).floor().clamp(module.lo, module.hi)
