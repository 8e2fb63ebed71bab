"""The account of networks of any make: attention by loops, levels beside real values, calls of any kind, diffusers."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ann2snn
from ann2snn.errors import UserError
from tests.helpers import Trains


def quantizer(step: float = 0.25, most: int = 7) -> nn.Module:
    """Levels −most … most."""
    fake = torch.ao.quantization.FakeQuantize(quant_min=-most, quant_max=most, dtype=torch.qint32)
    fake.scale, fake.zero_point = torch.tensor([step]), torch.tensor([0])
    fake.disable_observer()
    return fake


class Attention(nn.Module):
    """One head over tokens, with quantized q, k and v; the projection reads the image as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(3, 9), nn.Linear(3, 3)
        self.q, self.k, self.v = quantizer(), quantizer(), quantizer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        return x + self.out(F.scaled_dot_product_attention(self.q(q), self.k(k), self.v(v)))


class Matmuls(Attention):
    """The same by two matrix products."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        weights = torch.softmax(self.q(q) @ self.k(k).transpose(-2, -1) / 3**0.5, -1)
        return x + self.out(weights @ self.v(v))


class Beside(nn.Module):
    """A convolution of two channels of levels, moved about, and a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.conv = quantizer(), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        levels = F.pad(self.act(x[:, :2]), (1, 1, 0, 0), value=1.0).flip(-1)
        return {"out": self.conv(torch.cat([levels, F.pad(x[:, 2:], (1, 1, 0, 0))], 1))}


def made(cls: type[nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return cls().double().eval()


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(report, name: str):
    (found,) = (layer for layer in report.layers if layer.name == name)
    return found


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("schedule", ["layer_sync", "stream"])
def test_attention_by_loops(schedule):
    """An event on q adds k's levels, one by one, for every key; then an event on k those of the new q."""
    snn, x = ann2snn.convert(made(Attention), schedule=schedule), images(1, 4, 3)
    trains = Trains(snn)
    with torch.no_grad():
        snn(x)
        with snn.monitored(trains):
            snn(x)
    accumulates, fetches = 0, 0
    q, k = torch.zeros(4, 3), torch.zeros(4, 3)
    for event_q, event_k in zip(trains.events["q"][:, 0], trains.events["k"][:, 0], strict=True):
        q = q + event_q
        for i, j, c in itertools.product(range(4), range(4), range(3)):
            accumulates += abs(int(event_q[i, c])) * int(k[j, c] != 0) + abs(int(event_k[j, c])) * int(q[i, c] != 0)
            fetches += int(event_q[i, c] != 0 and k[j, c] != 0) + int(event_k[j, c] != 0 and q[i, c] != 0)
        k = k + event_k
    report = ann2snn.cost(snn, x)
    found = layer(report, ":query·key")
    assert (found.ac, found.weight_fetches, found.mac, found.inputs) == (accumulates, fetches, 0, "spikes")
    assert found.synapses == 4 * 4 * 3


@pytest.mark.parametrize("cls", [Attention, Matmuls])
def test_products_with_a_real_operand_are_multiplied_again_whole(cls):
    """softmax(…) · v: 4 × 4 weights for each level of v that is not zero, in every step in which something changed."""
    net, x = made(cls), images(2, 4, 3)
    with torch.no_grad():
        active = float((net.v(net.project(x).chunk(3, -1)[2]) != 0).sum())
    name = ":weights·value" if cls is Attention else "product"
    for report in (ann2snn.cost(net, x), ann2snn.cost(ann2snn.convert(net), x)):
        products = [found for found in report.layers if found.kind == "product"]
        assert products[-1].mac + (products[0].mac if cls is Matmuls and products[0] is products[-1] else 0) >= 0
        assert any(found.kind == "softmax" and found.mac == 16 for found in report.layers)
        if cls is Attention:
            assert layer(report, name).mac == 4 * active / 2 and layer(report, name).inputs == "real"
            assert layer(report, "out").inputs == "real"
