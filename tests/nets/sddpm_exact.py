"""SDDPM and SDM a second time: their equations one spike step at a time, and what a published file holds."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ann2snn.nets.sddpm import SDDPM


class StepByStep:
    """The network in eval mode, from its state dict and the papers' equations: [N, C, H, W], a spike step at a time."""

    def __init__(self, net: SDDPM, theta: float = 1.0) -> None:
        self.state, self.theta, self.config = net.state_dict(), theta, net.config

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.membranes: dict[str, Tensor] = {}
        steps = self.config.spike_steps
        temb = self.state["time_embedding.timembedding.0.weight"][t]
        temb = self.linear("time_embedding.timembedding.1", temb)
        temb = self.linear("time_embedding.timembedding.3", F.silu(temb))
        outputs = []
        for self.step in range(steps):
            outputs.append(0.8 ** (steps - 1 - self.step) * self.one_step(x, temb))
        return sum(outputs)

    def one_step(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.norm("bn", self.conv("conv", x))
        h = self.norm("bn_identity", self.conv("conv_identity", self.fire("stem", h)))
        skips = [h]
        for name in self.blocks("downblocks"):
            h = self.block(name, h, temb, F.conv2d, 2)
            skips.append(h)
        for name in self.blocks("middleblocks"):
            h = self.block(name, h, temb, None, 1)
        for name in self.blocks("upblocks"):
            if f"{name}.temb_proj.1.weight" in self.state:
                h = torch.cat([h, skips.pop()], dim=1)
            h = self.block(name, h, temb, None, 1)
        h = self.norm("tail_bn", h)
        h = self.conv("tail_conv", h * torch.sigmoid(h))
        side = F.conv3d(
            h[..., None], self.state["T_output_layer.weight"], self.state["T_output_layer.bias"], 1, (1, 1, 0)
        )
        return h + F.silu(self.norm("last_bn", side[..., 0]))

    def blocks(self, part: str) -> list[str]:
        indices = {int(name.split(".")[1]) for name in self.state if name.startswith(part)}
        return [f"{part}.{index}" for index in sorted(indices)]

    def block(self, name: str, x: Tensor, temb: Tensor, down: object, stride: int) -> Tensor:
        if f"{name}.temb_proj.1.weight" not in self.state:
            spikes = self.fire(f"{name}.1", x)
            if not down:
                spikes = spikes.repeat_interleave(2, -1).repeat_interleave(2, -2)
            return self.norm(f"{name}.bn", self.conv(f"{name}.conv", spikes, stride))
        h = self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", self.fire(f"{name}.1", x)))
        h = h + self.linear(f"{name}.temb_proj.1", F.silu(temb))[:, :, None, None]
        h = self.norm(f"{name}.bn2", self.conv(f"{name}.conv2", self.fire(f"{name}.2", h)))
        plain = not any(key.startswith(f"{name}.shortcut") for key in self.state)
        return h + (x if plain else self.conv(f"{name}.shortcut", x))

    def fire(self, name: str, x: Tensor) -> Tensor:
        u = self.membranes.get(name, 0) + x
        spikes = (u >= self.theta).to(x)
        self.membranes[name] = u * (1 - spikes)
        return spikes

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        inner = f"{name}.tsmconv" if self.config.tsm else name
        weight = self.state[f"{inner}.weight"]
        y = F.conv2d(x, weight, self.state[f"{inner}.bias"], stride, weight.shape[-1] // 2)
        return y * self.state[f"{name}.tsmp"].flatten()[self.step] if self.config.tsm else y

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{entry}"].view(1, -1, 1, 1)
            for entry in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def bn(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    entries = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (channels,))
    return {f"{name}.{entry}": shape for entry, shape in (entries | {"num_batches_tracked": ()}).items()}


def conv(name: str, c_in: int, c_out: int, *kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (c_out, c_in, *(kernel or (3, 3))), f"{name}.bias": (c_out,)}


def linear(name: str, c_in: int, c_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (c_out, c_in), f"{name}.bias": (c_out,)}


DOWN = [(128, 128), (128, 128), 128, (128, 256), (256, 256), 256, (256, 256), (256, 256), 256, (256, 512), (512, 512)]
UP = [
    (1024, 512), (1024, 512), (768, 512), 512, (768, 256), (512, 256), (512, 256), 256,
    (512, 256), (512, 256), (384, 256), 256, (384, 128), (256, 128), (256, 128),
]  # fmt: skip


def published_keys(c: int, steps: int | None = None) -> dict[str, tuple[int, ...]]:
    """Name → shape of everything in the published file with c image channels; steps: of TSM."""
    convs, rest = conv("conv", c, 128) | conv("conv_identity", 128, 128) | conv("tail_conv", 128, c), {}
    rest |= bn("bn", 128) | bn("bn_identity", 128) | bn("tail_bn", 128) | bn("last_bn", c)
    rest |= conv("T_output_layer", c, c, 3, 3, 1) | {"time_embedding.timembedding.0.weight": (1000, 128)}
    for index, (c_in, c_out) in {1: (128, 512), 3: (512, 512)}.items():
        rest |= linear(f"time_embedding.timembedding.{index}", c_in, c_out)
    for part, blocks in {"downblocks": DOWN, "middleblocks": [(512, 512)] * 2, "upblocks": UP}.items():
        for index, block in enumerate(blocks):
            name = f"{part}.{index}"
            if isinstance(block, int):
                convs |= conv(f"{name}.conv", block, block)
                rest |= bn(f"{name}.bn", block)
                continue
            c_in, c_out = block
            convs |= conv(f"{name}.conv1", c_in, c_out) | conv(f"{name}.conv2", c_out, c_out)
            convs |= conv(f"{name}.shortcut", c_in, c_out, 1, 1) if c_in != c_out else {}
            rest |= bn(f"{name}.bn1", c_out) | bn(f"{name}.bn2", c_out)
            rest |= linear(f"{name}.temb_proj.1", 512, c_out)
    if steps is None:
        return convs | rest
    owners = {name.rsplit(".", 1)[0] for name in convs}
    inner = {f"{o}.tsmconv.{entry}": convs[f"{o}.{entry}"] for o in owners for entry in ("weight", "bias")}
    return inner | {f"{o}.tsmp": (steps, 1, 1, 1, 1) for o in owners} | rest
