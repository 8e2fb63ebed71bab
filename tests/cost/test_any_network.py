"""The account of networks of any make: attention by loops, levels beside real values, calls of any kind, diffusers."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ann2snn
from ann2snn.cost.layers import ADDITIVE
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


@pytest.mark.parametrize(("cls", "name"), [(Attention, ":weights·value"), (Matmuls, "product (real)")])
def test_products_with_a_real_operand_are_multiplied_again_whole(cls, name):
    """softmax(…) · v: four weights for each level of v that is not zero; the projection behind reads real values."""
    net, x = made(cls), images(2, 4, 3)
    moved = x.clone()
    moved[1, 2, 0] += 3.0  # of one image
    with torch.no_grad():
        active = [(net.v(net.project(value).chunk(3, -1)[2]) != 0).sum((1, 2)) for value in (x, moved)]
    at_rest = ann2snn.cost(net, x), ann2snn.cost(ann2snn.convert(net), x)
    for report in at_rest:
        assert (layer(report, name).mac, layer(report, name).inputs) == (4 * float(active[0].sum()) / 2, "real")
        assert layer(report, "out").mac == 4 * 9 and layer(report, "out").inputs == "real"
        assert sum(found.mac for found in report.layers if found.kind == "softmax") == 16
    later = ann2snn.cost(ann2snn.convert(net), trajectory=[x, moved], carry=True).later
    assert layer(later, name).mac == 4 * float(active[1][1]) / 2 and layer(later, "out").mac == 4 * 9 / 2
    assert later.by_kind("updates")["softmax"] == 16 / 2


def test_differences_of_attention_by_loops():
    """Q'K' = QK + ΔQ·K + Q'·ΔK, each product where neither is zero."""
    net = made(Attention)
    calls = [images(1, 4, 3), images(1, 4, 3) + 0.3 * images(1, 4, 3, seed=1)]
    q, k = torch.zeros(4, 3), torch.zeros(4, 3)
    macs = 0
    for x in calls:
        with torch.no_grad():
            new_q, new_k, _ = (
                f(part)[0] for f, part in zip((net.q, net.k, net.v), net.project(x).chunk(3, -1), strict=True)
            )
        for i, j, c in itertools.product(range(4), range(4), range(3)):
            macs += int(new_q[i, c] != q[i, c] and k[j, c] != 0) + int(new_q[i, c] != 0 and new_k[j, c] != k[j, c])
        q, k = new_q, new_k
    found = {layer.name: layer for layer in ann2snn.cost(net, trajectory=calls).difference_layers}
    assert 2 * found[":query·key"].mac == macs > 0


def test_levels_beside_real_values():
    """Events of the padded, mirrored level channels accumulate; the real channel multiplies, where it changed."""
    net, x = made(Beside), images(2, 3, 4, 4)
    moved = x.clone()
    moved[0, 0] += 0.6
    trains = Trains(snn := ann2snn.convert(net))
    with torch.no_grad(), snn.carrying():
        snn(x)
        with snn.monitored(trains):
            snn(moved)
    account = ann2snn.cost(snn, trajectory=[(x,), {"x": moved}], carry=True)
    first, later = (layer(report, "conv") for report in (account.first, account.later))
    events = F.pad(trains.events["act"].abs().flatten(0, 1), (1, 1)).flip(-1)
    accumulates = F.conv2d(events, torch.ones(2, 2, 3, 3).double(), padding=1).sum() / 2
    assert later.ac == pytest.approx(float(accumulates)) and later.ac > 0 == later.mac
    real = F.conv2d(F.pad(torch.ones(1, 1, 4, 4), (1, 1)), torch.ones(2, 1, 3, 3), padding=1).sum()
    assert first.mac == float(real) and first.inputs == "mixed"


@pytest.mark.parametrize("how", [{}, {"schedule": "stream", "settle_steps": "auto"}])
def test_steps_that_run_one_by_one_are_counted_as_those_in_a_batch(how):
    """The same layers twice: with time in the batch, which networks of others do not have, and without."""
    net = nn.Sequential(quantizer(), nn.Linear(3, 4), nn.LayerNorm(4), quantizer(), nn.Linear(4, 2)).double().eval()
    snn, x = ann2snn.convert(net, **how), images(3, 3)
    found = [ann2snn.cost(snn, x)]
    snn.net.folds_time = True
    snn.set_spike_chunk(100)
    found.append(ann2snn.cost(snn, x))
    assert found[0].total("spikes") > 0
    for field in ADDITIVE:
        assert [getattr(layer, field) for layer in found[0].layers] == pytest.approx(
            [getattr(layer, field) for layer in found[1].layers], rel=1e-12
        )


def test_a_diffusers_network():
    """Every convolution and linear layer is in the account by its name, and the products of attention are."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).double().eval()  # fmt: skip
    x, t = images(2, 1, 8, 8), torch.tensor(10)
    quantized = ann2snn.quantize(net, bits=4, calibrate=[(x, t)])
    calls = [(x, t), ((x + 0.05 * images(2, 1, 8, 8, seed=1),), {"timestep": t})]
    account = ann2snn.cost(ann2snn.convert(quantized), trajectory=calls, carry=True)
    names = {found.name for found in account.layers}
    layers = {name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert layers <= names and sum(name.endswith(":query·key") for name in names) >= 3
    assert 0 < account.later.total("spikes") < account.first.total("spikes")
    baseline = ann2snn.cost(quantized, trajectory=calls)
    description = ann2snn.convert(quantized).describe(*calls[0])
    assert {s.name for s in description.synapses} <= names
    dense = {found.name: found.synapses for found in baseline.layers}  # of convolutions, less: padding is no input
    unpadded = [s for s in description.synapses if "conv" not in s.name or "shortcut" in s.name]
    assert unpadded and all(dense[s.name] == s.macs / 2 for s in unpadded)
    assert baseline.total("parameters") == sum(p.numel() for p in quantized.parameters())


class Torchs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.attention = quantizer(), nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(x)
        return self.attention(x, x, x)[0]


class Hidden(nn.Module):
    """Multiplies inside one function."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.act, self.part = quantizer(), part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(x)
        return self.part(x, x) if isinstance(self.part, nn.Bilinear) else self.part(x)[0]


def test_what_only_a_later_call_gives_is_counted_from_the_first_on():
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.table, self.none = quantizer(), quantizer(), nn.Parameter(torch.ones(1, 4))

        def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
            return self.act(x) + self.table(self.none if y is None else y)

    net, x, y = made(Optional), images(2, 4), images(2, 4, seed=1)
    alone = ann2snn.cost(ann2snn.convert(net), x, y).total("spikes")
    both = ann2snn.cost(ann2snn.convert(net), trajectory=[(x,), (x, y)])
    assert both.spikes_by_call[1] == alone


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda net, x: ann2snn.cost(made(lambda: Hidden(nn.LSTMCell(4, 4))), images(2, 4)), "inside lstm_cell"),
        (lambda net, x: ann2snn.cost(made(lambda: Hidden(nn.Bilinear(4, 4, 4))), images(2, 4)), "inside bilinear"),
        (lambda net, x: ann2snn.cost(net, trajectory=[]), "no call"),
        (lambda net, x: ann2snn.cost(net, trajectory=[(x,), (x[:1],)]), "1, 2 images"),
        (lambda net, x: ann2snn.cost(net, trajectory=["x"]), "a call of trajectory is a str"),
        (lambda net, x: ann2snn.cost(net, x, trajectory=[(x,)]), "not both"),
        (lambda net, x: ann2snn.cost(net, 3), "without a batch"),
        (lambda net, x: ann2snn.cost("net", x), "give a network"),
        (lambda net, x: ann2snn.cost(made(Torchs), images(2, 3, 4)), "multi_head_attention_forward"),
    ],
)
def test_what_cannot_be_counted_is_refused(how, words):
    with pytest.raises(UserError, match=words):
        how(made(Attention), images(2, 4, 3))
