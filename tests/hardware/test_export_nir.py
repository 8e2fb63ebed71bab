"""A written graph, run by nirtorch as NIR defines its primitives, sends the events that the converted network sends."""

import collections
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ann2snn
from ann2snn import UserError
from ann2snn.quant import QuantConv2d, QuantLinear, QuantReLU
from tests.hardware.simulated import run

TIME = 417


def need_nir() -> None:
    for name in ("nir", "nirtorch"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install nir nirtorch")


class Classifier(nn.Module):
    """Convolutions with stride, groups and batch norm, a residual sum, two kinds of pooling, a linear layer."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.first = QuantConv2d(2, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.acts = nn.ModuleList(QuantReLU(bits) for _ in range(4))
        self.grouped = QuantConv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False)
        self.shortcut = nn.AvgPool2d(2)
        self.last = QuantConv2d(4, 6, 3)
        self.linear = QuantLinear(6, 5)

    def forward(self, x):
        h = self.acts[0](self.norms[0](self.first(x)))
        h = self.acts[1](self.norms[1](self.grouped(h)) * 1.5 + self.shortcut(h) - 0.1)
        h = self.acts[2](self.last(torch.cat([self.norms[2](h)], dim=1)))
        return self.linear(self.acts[3](F.adaptive_avg_pool2d(h, 1).flatten(1)))


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics under which most neurons do something."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)  # noqa: E731
    net = net.double().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_(draw(module.weight) * (2 / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(draw(module.bias) * 0.2)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(draw(module.running_mean) * 0.3)
                module.running_var.copy_(draw(module.running_var).abs() + 0.3)
                module.weight.copy_(draw(module.weight) * 0.3 + 1)
                module.bias.copy_(draw(module.bias) * 0.3)
            if isinstance(module, QuantReLU):
                module.act_alpha.copy_(0.7 + 0.5 * draw(module.act_alpha).abs())
    return net


def unet(bits: int, **options: object) -> nn.Module:
    shape = {"ch": 4, "ch_mult": (1, 2), "num_res_blocks": 1, "image_size": 4, "in_channels": 1, "norm": "batch"}
    return randomised(ann2snn.build_unet(bit=bits, **shape | options))


class Events:
    """A monitor: the events of every neuron layer, call by call, [steps, 1, *S]."""

    def __init__(self, snn) -> None:
        self.names = {neuron: name for name, neuron in snn.neurons()}
        self.of = collections.defaultdict(list)

    def record(self, neuron, events, is_count) -> None:
        assert not is_count
        self.of[self.names[neuron]].append(events)


def expected(snn, call: tuple, steps: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """({layer: its events [steps, 1, *S]}, the answer) of `stream`, run so many steps beyond the window."""
    events = Events(snn)
    how = snn.spiking.changed(schedule="stream", settle_steps=steps)
    with torch.no_grad(), snn.monitored(events), snn.running_as(how):
        answer = snn(*call)
    return {name: torch.cat(found) for name, found in events.of.items()}, answer


def sent_by(seen: list[dict[str, torch.Tensor]], layer: str, like: torch.Tensor) -> torch.Tensor:
    """The events of a layer in a graph that ran, [steps, 1, *S] as `like`."""
    held = {}
    for role in ("up", "minus_down"):
        names = [name for name in seen[0] if name.endswith("_" + f"{layer}.{role}".replace(".", "_"))]
        if names:
            held[role] = torch.stack([step[names[0]] for step in seen])
    found = sum(held.values())  # [steps, 1, C·f², H/f, W/f]
    factor = round((like[0].numel() // like.shape[2] // (found.shape[-1] * found.shape[-2])) ** 0.5)
    return torch.stack([F.pixel_shuffle(step, factor) for step in found]).reshape(like.shape)


def check_same(snn, call: tuple, path, more: int = 0, deep: bool = True, fold_norms: bool = False) -> None:
    """Every event of every layer in every step, and the answer; each layer has some, of either sign if it can.

    deep: whether there are layers whose input changes its mind.
    """
    import nir

    ann2snn.export_nir(snn, None if len(call) == 1 else TIME, path, x=call[0], fold_norms=fold_norms)
    graph = nir.read(path, type_check=len(call) == 1)  # which takes NIR long where there are many nodes
    steps = snn.clock.spike_steps
    events, answer = expected(snn, call, more)
    seen, answers = run(graph, call[0], steps, more)
    for layer, wanted in events.items():
        assert torch.equal(sent_by(seen, layer, wanted), wanted), layer
    shuffled = F.pixel_shuffle(answers[-1], int(graph.metadata["output_pixel_shuffle"]))
    torch.testing.assert_close(shuffled.reshape(answer.shape), answer, rtol=1e-11, atol=1e-11)
    kinds = {int(event) for found in events.values() for event in found.unique()}
    assert all(bool(found.any()) for found in events.values())
    assert kinds == ({-1, 0, 1} if snn.spiking.signed and deep else {0, 1})


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_a_convolutional_network_sends_the_same_events_in_every_step(tmp_path, bits, signed):
    need_nir()
    net = randomised(Classifier(bits), bits)
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    snn = ann2snn.convert(net, schedule="stream", signed=signed)
    check_same(snn, (x,), tmp_path / "net.nir", more=4 * signed)


@pytest.mark.parametrize("bits, norm_bins", [(2, 1), (3, 4)], ids=["plain", "statistics per diffusion time, folded"])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_a_unet_sends_the_same_events_in_every_step(tmp_path, bits, norm_bins, signed):
    need_nir()
    net = unet(bits, spike_driven=True, norm_bins=norm_bins)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    snn = ann2snn.convert(net, schedule="stream", signed=signed)
    call = (x, torch.tensor([TIME]))
    check_same(snn, call, tmp_path / "net.nir", more=3 * signed, fold_norms=norm_bins > 1)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_norms_folded_into_convolutions_leave_every_event_as_it_is(tmp_path, bits, signed):
    need_nir()
    import nir

    x = torch.randn(1, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    snn = ann2snn.convert(randomised(Classifier(bits), bits), schedule="stream", signed=signed)
    check_same(snn, (x,), tmp_path / "folded.nir", more=4 * signed, fold_norms=True)
    ann2snn.export_nir(snn, None, tmp_path / "net.nir", x=x)
    nodes = [set(nir.read(tmp_path / f"{name}.nir").nodes) for name in ("net", "folded")]
    gone = {name.partition(".")[2] for name in nodes[0] - nodes[1]}
    assert gone == {"norms.0.norm", "norms.1.norm"} and nodes[1] < nodes[0]  # the third one reads a neuron


class Foreign(nn.Module):
    """An ordinary network with rectifiers, up-sampling and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.down = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU())
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 1))
        self.last = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x):
        return self.last(torch.cat([self.up(self.down(self.body(x))), x, x - 1], dim=1))


@pytest.mark.parametrize("bits", [2, 4])
def test_a_foreign_network_with_rectifiers_and_levels_of_both_signs_sends_the_same_events(tmp_path, bits):
    need_nir()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    net = ann2snn.quantize(randomised(Foreign()), bits=bits, calibrate=[(x,)])
    snn = ann2snn.convert(net, schedule="stream")
    assert {neuron.levels.lo for _, neuron in snn.neurons()} > {0}
    check_same(snn, (x,), tmp_path / "net.nir", more=5)


class One(nn.Module):
    """A neuron between two convolutions, and something else in between."""

    def __init__(self, between, act: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.act, self.between = act or QuantReLU(2), between

    def forward(self, x):
        return self.last(self.between(self.act(self.first(x))))


class Between(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


def written_into(h):
    buffer = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    buffer[:] = h
    return buffer


@pytest.mark.parametrize(
    "between, words",
    [
        (nn.GroupNorm(1, 2), ["between: group_norm", "--norm=batch"]),
        (nn.LayerNorm([4, 4]), ["between: layer_norm", "--norm=batch"]),
        (nn.InstanceNorm2d(2), ["between: instance_norm", "--norm=batch"]),
        (nn.BatchNorm2d(2, track_running_stats=False), ["between: ", "batch norm"]),
        (nn.SiLU(), ["between: silu", "quantizer"]),
        (nn.ReLU(), ["last: relu", "quantizer"]),
        (nn.MaxPool2d(2), ["between: max_pool2d", "average pooling"]),
        (nn.ConvTranspose2d(2, 2, 2, stride=2), ["between: conv_transpose2d", "up-sampling"]),
        (nn.Upsample(scale_factor=2, mode="bilinear"), ["between: interpolate"]),
        (nn.Conv2d(2, 2, (1, 3)), ["between: ", "square"]),
        (Between(lambda h: h * h), ["between: mul", "no product of two signals"]),
        (Between(lambda h: h @ h), ["between: matmul", "no product of two signals"]),
        (Between(lambda h: h.softmax(1)), ["between: softmax", "no product"]),
        (Between(lambda h: F.scaled_dot_product_attention(h, h, h)), ["between: scaled_dot_product_attention"]),
        (Between(lambda h: h[:, [1, 0]]), ["between: getitem"]),
        (Between(lambda h: h.transpose(2, 3)), ["between: transpose"]),
        (Between(lambda h: torch.cat([h, h], dim=2)), ["between: ", "another axis"]),
        (Between(lambda h: torch.from_numpy(h.numpy() * 2)), ["between: numpy"]),
        (Between(written_into), ["between: setitem"]),
        (Between(lambda h: F.dropout(h)), ["between: dropout"]),
        (Between(lambda h: h.chunk(2, 1)[0].repeat(1, 2, 1, 1)), ["between: chunk"]),
        (Between(lambda h: h.mean(0, keepdim=True)), ["between: mean"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_nir_cannot_say_is_refused_by_the_name_of_its_layer(tmp_path, between, words):
    need_nir()
    snn = ann2snn.convert(One(between).eval())
    with pytest.raises(UserError) as refused:
        ann2snn.export_nir(snn, None, tmp_path / "net.nir", x=torch.zeros(1, 2, 4, 4))
    assert all(word in str(refused.value) for word in words), refused.value
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(4, 6), (8, 4)])
def test_images_that_are_no_squares_are_refused_by_their_size(tmp_path, size):
    need_nir()
    snn = ann2snn.convert(unet(2, spike_driven=True, image_size=size), schedule="stream")
    with pytest.raises(UserError, match=f"images of {size[0]}x{size[1]} pixels: constants reach squares alone"):
        ann2snn.export_nir(snn, TIME, tmp_path / "net.nir")
    one = ann2snn.convert(randomised(One(nn.Identity())), schedule="stream")
    x = torch.zeros(1, 2, *size, dtype=torch.float64)
    with pytest.raises(UserError, match=f"images of {size[0]}x{size[1]} pixels"):
        ann2snn.export_nir(one, None, tmp_path / "net.nir", x=x)
    assert not list(tmp_path.iterdir())


def test_a_quantizer_that_rounds_otherwise_is_refused(tmp_path):
    need_nir()
    act = torch.ao.quantization.FakeQuantize(quant_min=0, quant_max=15, dtype=torch.quint8)
    act.disable_observer()
    snn = ann2snn.convert(One(nn.Identity(), act).eval())
    with pytest.raises(UserError, match="^act: a FakeQuantize does not round half up"):
        ann2snn.export_nir(snn, None, tmp_path / "net.nir", x=torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize(
    "how, words",
    [
        ({"schedule": "stream", "burst": 2}, "--burst=2"),
        ({"schedule": "stream", "stream_norm": "per_step"}, "stream_norm=cumulative"),
        ({"schedule": "stream", "if_neuron": "reference"}, "if_neuron=bounded"),
        ({"schedule": "stream", "signed": False, "settle_steps": 2}, "settle_steps=0"),
    ],
)
def test_neurons_that_run_otherwise_are_refused(tmp_path, how, words):
    need_nir()
    with pytest.raises(UserError, match=words):
        ann2snn.export_nir(ann2snn.convert(unet(2), **how), TIME, tmp_path / "net.nir")


def test_arguments_that_make_no_file_are_refused_and_nothing_is_overwritten(tmp_path, monkeypatch):
    need_nir()
    net, path = unet(2), tmp_path / "net.nir"
    snn = ann2snn.convert(net)
    for given, t, words in ((net, TIME, "not converted"), (snn, 1000, "t=1000"), (snn, float("nan"), "t=nan")):
        with pytest.raises(UserError, match=words):
            ann2snn.export_nir(given, t, path)
    path.write_text("kept")
    with pytest.raises(UserError, match="exists"):
        ann2snn.export_nir(snn, TIME, path)
    assert path.read_text() == "kept"


def test_without_the_package_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(UserError, match="pip install nir"):
        ann2snn.export_nir(ann2snn.convert(unet(2)), TIME, tmp_path / "net.nir")


def test_the_caller_keeps_network_and_schedule(tmp_path):
    need_nir()
    snn = ann2snn.convert(unet(2).float())
    call = torch.ones(1, 1, 4, 4), torch.tensor([TIME])
    before = snn(*call)
    ann2snn.export_nir(snn, TIME, tmp_path / "net.nir")
    assert torch.equal(snn(*call), before) and snn.spiking.schedule == "layer_sync"


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_learned_thresholds_and_potentials_of_every_channel_and_folded_weights_come_along(tmp_path, signed):
    need_nir()
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    snn = ann2snn.convert(randomised(Classifier(2), 5), schedule="stream", signed=signed)
    generator = torch.Generator().manual_seed(4)
    for name, neuron in snn.neurons():
        neuron.expand({"acts.2": (6, 1, 1), "acts.3": (6,)}.get(name, (4, 1, 1)), thresholds=True, charges=True)
        for parameter in (neuron.act_alpha, neuron.charge):
            parameter.data *= torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 0.8 + 0.6
    check_same(snn, (x,), tmp_path / "net.nir", more=4 * signed)


def test_folded_thresholds_are_worth_what_the_next_weights_do_not_hold(tmp_path):
    need_nir()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    snn = ann2snn.convert(randomised(One(nn.Identity())), schedule="stream")
    check_same(ann2snn.fold_thresholds(snn, x), (x,), tmp_path / "net.nir", more=2, deep=False)
