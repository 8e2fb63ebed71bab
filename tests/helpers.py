"""What several test folders share: the golden arrays, comparisons, and random networks in which every layer is busy."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ann2snn.config import UNetConfig
from ann2snn.convert import SpikingNetwork, relative_error
from ann2snn.nets import UNet
from quant import QuantReLU

GOLDEN = Path(__file__).parent / "golden"
SHAPES = {
    "full": {"ch": 32, "ch_mult": (1, 2, 2, 2), "num_res_blocks": 2, "dropout": 0.0},
    "tiny": {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "dropout": 0.0},
}


def slow(*values: object):
    """A case for the long tests: it takes long, and others make the same claim."""
    return pytest.param(*values, marks=pytest.mark.slow)


class Golden:
    """One npz of reference arrays. Remembers which were looked at, so that the registry can find a forgotten one."""

    def __init__(self, name: str) -> None:
        self.file = np.load(GOLDEN / f"{name}.npz")
        self.names = tuple(self.file.files)
        self.unread = set(self.names)

    def array(self, key: str) -> np.ndarray:
        self.unread.discard(key)
        return self.file[key]

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.array(key))).reshape(self.file[key].shape)

    def strings(self, key: str) -> list[str]:
        return [str(s) for s in self.array(key)]

    def under(self, prefix: str) -> list[str]:
        """What follows `prefix` in the names that start with it."""
        return [name.removeprefix(prefix) for name in self.names if name.startswith(prefix)]


golden = cache(Golden)


@cache
def _golden_state(shape: str) -> dict[str, torch.Tensor]:
    parts = sorted(path.stem for path in GOLDEN.glob(f"unet_{shape}_state_part*.npz"))
    return {name: golden(part)[name].float() for part in parts for name in golden(part).names}


def golden_state(shape: str) -> dict[str, torch.Tensor]:
    """The reference network's float32 state dict, a fresh copy; shape is "full" or "tiny"."""
    return {name: value.clone() for name, value in _golden_state(shape).items()}


def golden_ann(shape: str, image_size: int, bits: int = 2, dtype: torch.dtype = torch.float32) -> UNet:
    net = UNet(UNetConfig(bits=bits, image_size=image_size, **SHAPES[shape]))
    net.load_state_dict(golden_state(shape), strict=True)
    return net.to(dtype).eval()


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Relative L2 error of the whole tensor. NaN fails, and so does another shape."""
    assert tuple(actual.shape) == tuple(expected.shape)
    error = relative_error(actual, expected)
    assert error <= tolerance, f"relative error {error:.3g}, allowed {tolerance:.0e}"


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def random_ann(seed: int = 0, **options: object) -> UNet:
    """A quantized U-Net in float64 whose weights, biases, affines and clips are random and keep every layer busy."""
    settings = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 2, "bits": 2, "image_size": 4}
    net = UNet(UNetConfig(**settings | {"dropout": 0.0, "diffusion_steps": 20} | options))
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=1.2 * fan_in**-0.5, generator=generator)
            nn.init.normal_(module.bias, std=0.3, generator=generator)
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.4, generator=generator)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, generator=generator)
        if isinstance(module, QuantReLU) and module.quantizes:
            nn.init.uniform_(module.act_alpha, 0.7, 2.0, generator=generator)
    return net.double().eval()


def random_batch(net: UNet | SpikingNetwork, n: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x [n, C, H, W] in float64 and integer t [n]."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(n, net.in_channels, *net.image_size, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, net.config.diffusion_steps, (n,), generator=generator)


class Trains:
    """Monitor that keeps what every neuron layer sends, chunks joined in time: name → [L, N, *S]."""

    def __init__(self, snn: SpikingNetwork) -> None:
        self.names = {neuron: name for name, neuron in snn.neurons()}
        self.events: dict[str, torch.Tensor] = {}
        self.counts = False

    def record(self, neuron: nn.Module, events: torch.Tensor, is_count: bool) -> None:
        name = self.names[neuron]
        self.counts = is_count
        earlier = [self.events[name]] if name in self.events else []
        self.events[name] = torch.cat([*earlier, events.detach().clone()])


def spike_trains(snn: SpikingNetwork, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """(the network's output, every layer's events)."""
    trains = Trains(snn)
    with torch.no_grad(), snn.monitored(trains):
        return snn(x, t), trains.events


def ann_counts(net: UNet, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(output, every activation as a level 0..T in float64) of a quantized ANN."""
    levels: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            exact = output.double() * module.levels / module.clip().double()
            levels[name] = exact.round()
            assert (exact - levels[name]).abs().max() < 1e-9

        return hook

    quantizers = [(name, module) for name, module in net.named_modules() if isinstance(module, QuantReLU)]
    handles = [module.register_forward_hook(keep(name)) for name, module in quantizers]
    try:
        with torch.no_grad():
            return net(x, t), levels
    finally:
        for handle in handles:
            handle.remove()
