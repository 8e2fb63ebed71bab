"""NIR's primitives as its definitions have them, in double precision, run by nirtorch. Nothing of this program."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Integrator(nn.Module):
    """dv/dt = R·I, in steps of 1 from 0."""

    def __init__(self, r):
        super().__init__()
        self.register_buffer("r", torch.from_numpy(r))

    def forward(self, current: Tensor, state=None):
        state = (0 if state is None else state) + self.r * current
        return state, state


class Heaviside(nn.Module):
    """1 where v > threshold, else 0."""

    def __init__(self, threshold):
        super().__init__()
        self.register_buffer("threshold", torch.from_numpy(threshold))

    def forward(self, v: Tensor) -> Tensor:
        return (v > self.threshold).to(v.dtype)


class Product(nn.Module):
    """x ⊙ s."""

    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", torch.from_numpy(scale))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Convolution(nn.Module):
    """nirtorch 2.6 would exchange the channels of its input and of its output."""

    def __init__(self, node):
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(node.weight))
        self.register_buffer("bias", torch.from_numpy(node.bias))
        pairs = ("stride", "padding", "dilation")
        self.how = {name: tuple(int(side) for side in getattr(node, name)) for name in pairs}

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, **self.how)


def modules(nir) -> dict:
    """How nirtorch is to run each primitive."""
    return {
        nir.I: lambda node: Integrator(node.r),
        nir.Threshold: lambda node: Heaviside(node.threshold),
        nir.Scale: lambda node: Product(node.scale),
        nir.Conv2d: Convolution,
    }


def run(graph, x: Tensor, steps: int, more: int = 0) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """The graph, fed x/steps for so many steps, then nothing for `more` → what each node answers in each step; and what
    the graph answers."""
    import nir
    import nirtorch

    net = nirtorch.nir_to_torch(graph, modules(nir), dtype=torch.float64)
    seen: list[dict[str, Tensor]] = []
    for name, module in net.named_children():
        module.register_forward_hook(lambda _, args, out, name=name: note(seen[-1], name, out))
    answers, state = [], None
    with torch.no_grad():
        for step in range(steps + more):
            seen.append({})
            answer, state = net(x / steps if step < steps else torch.zeros_like(x), state)
            answers.append(answer)
    return seen, answers


def note(step: dict[str, Tensor], name: str, out: object) -> None:
    step[name] = out[0] if isinstance(out, tuple) else out
