"""A device that only adds events: whole sums never drift, sums of few digits do, and refreshing ends it."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ann2snn import UserError
from ann2snn.convert import SpikingNetwork, as_device, convert, quantizers, relative_error
from ann2snn.convert.accumulators import LinearMap
from ann2snn.convert.fold import senders
from ann2snn.kernels import Levels, upsample_nearest
from ann2snn.ptq.calls import fresh
from quant import UniformQuantizer
from tests.convert.random_graphs import Recipe
from tests.convert.test_random_graphs import answered, on_random_graphs
from tests.helpers import assert_equal, random_ann, random_batch


class Small(nn.Module):
    """Upsampling, a strided and a grouped convolution, a norm, a linear layer; the smallest with one of each."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.stem, self.act1 = nn.Conv2d(1, channels, 3, padding=1), UniformQuantizer(4)
        self.up, self.norm = nn.Conv2d(channels, channels, 3, padding=1, groups=2), nn.GroupNorm(2, channels)
        self.act2, self.down = UniformQuantizer(3, signed=False), nn.Conv2d(channels, channels, 3, stride=2)
        self.act3, self.head = UniformQuantizer(4), nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.up(upsample_nearest(self.act1(self.stem(x)))))
        h = self.down(self.act2(h))
        return self.head(self.act3(h.flatten(2).transpose(1, 2)))


def small(seed: int = 0) -> tuple[SpikingNetwork, Tensor]:
    """(the network, as large in float64, an input)."""
    torch.manual_seed(seed)
    net = Small().double().eval()
    for module in (net.act1, net.act2, net.act3):
        nn.init.uniform_(module.scale, 0.1, 0.2)
    snn, x = convert(net), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    snn.describe(x)
    return snn, x


def whole(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """(whole numbers, step [C_out, 1, …]) by channel."""
    rows = weight.detach().flatten(1)
    step = rows.abs().amax(1) / (2 ** (bits - 1) - 1)
    return (rows / step[:, None]).round().view_as(weight), step.view(-1, *[1] * (weight.dim() - 2))


def recomputing(snn: SpikingNetwork, *example: Tensor) -> SpikingNetwork:
    """A copy whose layers that read levels compute step · Δ · Σ whole weight · level, anew in every pass."""
    net = copy.deepcopy(snn)
    neurons = dict(net.neurons())
    for name, sender in senders(snn.describe(*example)).items():
        layer, neuron = net.net.get_submodule(name), neurons[sender]
        integers, step = whole(layer.weight)
        per_output = step.shape if layer.weight.dim() > 2 else (-1,)

        def forward(x, layer=layer, neuron=neuron, integers=integers, step=step, per_output=per_output):
            worth = neuron.levels.step
            levels = (x / worth).round()
            bias = layer.bias.view(per_output)
            if isinstance(layer, nn.Linear):
                return F.linear(levels, integers) * (step * worth) + bias
            how = layer.stride, layer.padding, layer.dilation, layer.groups
            return F.conv2d(levels, integers, None, *how).round() * (step * worth) + bias

        layer.forward = forward
    return net


def levels_of(snn: SpikingNetwork) -> list[Tensor]:
    return [level for _, neuron in snn.neurons() for level in neuron.states]


def assert_same_levels(device: SpikingNetwork, other: SpikingNetwork) -> None:
    assert len(levels_of(device)) == len(levels_of(other)) > 0
    for a, b in zip(levels_of(device), levels_of(other), strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize(
    "kind, calls",
    [
        ("small", 200),
        pytest.param("small", 1000, marks=pytest.mark.slow),
        ("unet", 30),
        pytest.param("unet", 1000, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_whole_sums_hold_the_levels_of_the_recomputing_network_for_good(kind, calls):
    if kind == "small":
        snn, x = small()
        call = [x]
    else:
        snn = convert(random_ann(bits=3, spike_driven=True, ch=4, ch_mult=(1,)))
        call = list(random_batch(snn, 1))
    device, exact = as_device(snn), recomputing(snn, *call)
    generator, changed = torch.Generator().manual_seed(1), 0
    with device.carrying(), exact.carrying():
        before = None
        for _ in range(calls):
            call[0] = 0.97 * call[0] + 0.25 * torch.randn(call[0].shape, generator=generator, dtype=torch.float64)
            assert_equal(device(*call), exact(*call))
            changed += before is not None and not torch.equal(levels_of(device)[-1], before)
            before = levels_of(device)[-1].clone()
        assert_same_levels(device, exact)
        assert set(device.drift()) == set(device.readers) and not any(device.drift().values())
        for accumulator in device.accumulators.values():
            accumulator.empty()
        assert not any(device.drift().values())  # nothing has been added that could be wrong
    assert changed > calls / 2 and device.restarts == 1


@on_random_graphs(5, 100, change=st.sampled_from([0.02, 0.3]), schedule=st.sampled_from(["layer_sync", "stream"]))
def test_whole_sums_are_those_of_a_device_that_sends_all_levels_anew(recipe: Recipe, change: float, schedule: str):
    call = recipe.call(0)
    snn = convert(recipe.network(), schedule=schedule)
    try:
        device, anew = (as_device(snn, *fresh(call[0]), refresh=n, **fresh(call[1])) for n in (0, 1))
    except UserError as error:
        assert "no convolution or linear layer" in str(error)
        return
    with device.carrying(), anew.carrying():
        for seed in range(1, 5):
            for a, b in zip(answered(device, call), answered(anew, call), strict=True):
                assert_equal(a, b)
            call = recipe.call(seed, call, change)
        assert_same_levels(device, anew)


@on_random_graphs(5, 100, schedule=st.sampled_from(["layer_sync", "stream"]))
def test_wide_sums_answer_what_the_spiking_network_does(recipe: Recipe, schedule: str):
    call = recipe.call(0)
    snn = convert(recipe.network(), schedule=schedule)
    try:
        device = as_device(snn, *fresh(call[0]), accumulators="float64", **fresh(call[1]))
    except UserError as error:
        assert "no convolution or linear layer" in str(error)
        return
    for a, b in zip(answered(device, call), answered(snn, call), strict=True):
        assert relative_error(a, b) < 1e-12
    with device.carrying(), snn.carrying():
        for seed in range(1, 4):
            for a, b in zip(answered(device, call), answered(snn, call), strict=True):
                assert relative_error(a, b) < 1e-12
            call = recipe.call(seed, call, 0.2)


@pytest.mark.parametrize("kind", ["float16", "float32"])
@torch.no_grad()
def test_sums_of_few_digits_round_at_every_event_of_a_linear_layer(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 20), UniformQuantizer(4), nn.Linear(20, 5)).eval()
    nn.init.constant_(net[1].scale, 0.25)
    snn, sums, before = convert(net), np.zeros(5, kind), np.zeros(20)
    device = as_device(snn, torch.zeros(1, 3), accumulators=kind)
    weight = net[2].weight.detach().numpy()
    with device.carrying():
        for _ in range(50):
            device(torch.randn(1, 3))
            level = levels_of(device)[0][0].double().numpy()
            for feature in np.flatnonzero(level != before):
                events = np.float32(level[feature] - before[feature])
                sums = (sums.astype(np.float32) + weight[:, feature] * events).astype(kind)
            before = level
            np.testing.assert_array_equal(device.accumulators["2", 0].sums[0].numpy(), sums)


@torch.no_grad()
def test_fewer_digits_drift_further_and_a_refresh_ends_it():
    snn, x = small()
    generator = torch.Generator().manual_seed(0)
    walk = [x]
    for _ in range(39):
        walk.append(0.97 * walk[-1] + 0.25 * torch.randn(x.shape, generator=generator, dtype=x.dtype))
    errors = {}
    for how in (("float64", 0), ("float32", 0), ("float16", 0), ("bfloat16", 0), ("float16", 39)):
        device = as_device(snn, accumulators=how[0], refresh=how[1])
        with device.carrying():
            for call in walk:
                device(call)
            errors[how] = device.drift()["up"]  # its levels are the exact ones: the stem has no sums
            last = device.accumulators["up", 0].sums
    assert errors["float64", 0] < 1e-13 < errors["float32", 0] < 1e-5 < errors["float16", 0] < errors["bfloat16", 0]
    assert errors["float16", 39] < errors["float16", 0] / 2
    fresh_one = as_device(snn, accumulators="float16")
    with fresh_one.carrying():
        fresh_one(walk[-1])
        assert_equal(fresh_one.accumulators["up", 0].sums, last)  # refreshed in that call: as from rest


MAPS = [
    (torch.conv2d, (2, 4, 5, 5), (6, 4, 3, 3), {"padding": 1}),
    (torch.conv2d, (2, 4, 5, 5), (6, 2, 3, 3), {"groups": 2, "stride": 2}),
    (torch.conv1d, (2, 4, 5), (8, 1, 3), {"groups": 4, "dilation": 2}),
    (torch.conv_transpose2d, (2, 4, 5, 5), (4, 3, 3, 3), {"groups": 2, "stride": 2, "output_padding": 1}),
    (torch.conv3d, (1, 2, 4, 4, 4), (3, 2, 2, 2, 2), {}),
    (F.linear, (2, 7, 4), (3, 4), {}),
]


@pytest.mark.parametrize("function, shape, weight, how", MAPS, ids=lambda v: getattr(v, "__name__", None))
def test_channels_add_up_and_weights_take_on_what_levels_are_worth(function, shape, weight, how):
    torch.manual_seed(0)
    x, w, bias = torch.randn(shape).double(), torch.randn(weight).double(), None
    linear, given, known = LinearMap.of(function, (x, w, bias), how)
    assert given is x and known is w
    whole_answer, parts = function(x, w, None, **how), list(linear.by_channel(x, w))
    assert len(parts) == shape[linear.channels] // how.get("groups", 1)
    torch.testing.assert_close(sum(parts), whole_answer)
    worth = torch.rand(shape[linear.channels]).double()
    scaled = x * worth.view(-1, *[1] * (-linear.channels - 1))
    torch.testing.assert_close(linear(x, w * linear.per_input(worth, w)), function(scaled, w, None, **how))
    out = torch.rand(whole_answer.shape[linear.channels]).double()
    with_bias = function(x, w, out, **how)
    torch.testing.assert_close(whole_answer + linear.per_output(out), with_bias)


class Joined(nn.Module):
    """A convolution of levels of two sizes, the second of one step per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList(nn.Conv2d(1, 3, 1) for _ in range(2))
        self.acts = nn.ModuleList([UniformQuantizer(4), UniformQuantizer(4, channels=3)])
        self.join = nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (act(stem(x)) for act, stem in zip(self.acts, self.stems, strict=True))
        return self.join(F.pad(torch.cat([a, b], 1), (1, 1, 1, 1)))


@pytest.mark.parametrize("kind", ["int32", "float64"])
@torch.no_grad()
def test_weights_carry_the_steps_where_a_layer_reads_several(kind):
    torch.manual_seed(0)
    net = Joined().double().eval()
    nn.init.uniform_(net.acts[1].scale, 0.1, 0.5)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    steps = torch.cat([net.acts[0].step().expand(3), net.acts[1].step().flatten()]).view(1, -1, 1, 1)
    device = as_device(convert(net), x, accumulators=kind, weight_bits=12)
    expected = net
    if kind == "int32":
        integers, step = whole(net.join.weight * steps, 12)
        expected = copy.deepcopy(net)
        expected.join.weight.data = integers * step[:, None] / steps
    with device.carrying():
        for now in (x, x + 0.3, -x):
            torch.testing.assert_close(device(now), expected(now))
    assert device.readers == {"join": 8}


@torch.no_grad()
def test_weights_that_are_whole_already_stay_as_they_are():
    ann = random_ann(bits=3, spike_driven=True, ch=4, ch_mult=(1,), weight_bits=4, weight_quant="uniform")
    snn = convert(ann)
    device, (x, t) = as_device(snn, weight_bits=2), random_batch(ann)
    with device.carrying(), snn.carrying():
        for now in (x, x + 0.1, 0.5 * x):
            assert relative_error(device(now, t), snn(now, t)) < 1e-12
        assert_same_levels(device, snn)


@torch.no_grad()
def test_nan_is_answered_with_nan_and_forgotten():
    snn, x = small()
    device, other = as_device(snn), as_device(snn)
    with device.carrying(), other.carrying():
        for now in (x, x + torch.nan, x + 0.5):
            answer = device(now)
            if now.isnan().any():
                assert answer.isnan().all()
            else:
                assert_equal(answer, other(now))


@torch.no_grad()
def test_another_shape_and_reset_begin_with_empty_sums():
    snn, x = small()
    device = as_device(snn, accumulators="float16")
    with device.carrying():
        first = device(x)
        device(x + 1)
        device(torch.cat([x, x]))
        device.reset()
        assert not device.accumulators and not levels_of(device)
        assert_equal(device(x), first)
        assert device.restarts == 3
    assert not device.accumulators
    assert_equal(device(x), first)  # outside: from rest


@torch.no_grad()
def test_the_original_is_left_alone_and_the_device_is_called_as_it_is():
    snn = convert(random_ann(bits=2))
    device, (x, t) = as_device(snn, accumulators="float64"), random_batch(snn)
    assert device.image_size == snn.image_size and isinstance(device, SpikingNetwork)
    expected = snn(x, t)
    with device.carrying():
        device(x=x, t=t)
    again = copy.deepcopy(device)
    assert relative_error(again(x, t), expected) < 1e-12 and torch.equal(snn(x, t), expected)


def shallow() -> SpikingNetwork:
    return convert(nn.Sequential(nn.Conv2d(1, 2, 1), UniformQuantizer(2)).eval())


def wide() -> SpikingNetwork:
    return convert(nn.Sequential(UniformQuantizer(8, signed=False), nn.Linear(300, 2)).eval())


def published() -> SpikingNetwork:
    return convert(random_ann(), schedule="stream", stream_norm="per_step", if_neuron="reference")


ROW, IMAGE = torch.ones(1, 300), torch.ones(1, 1, 2, 2)
REFUSED = {
    "not converted": (lambda: as_device(random_ann()), "a UNet sends no events: convert it first"),
    "unsigned": (
        lambda: as_device(convert(random_ann(), signed=False)),
        "carrying needs neurons that can take spikes back: use --signed (signed=True)",
    ),
    "published": (lambda: as_device(published()), "carrying needs stream_norm=cumulative and if_neuron=bounded"),
    "nothing reads": (lambda: as_device(shallow(), IMAGE), "no convolution or linear layer reads levels alone"),
    "type": (lambda: as_device(wide(), ROW, accumulators="int16"), "accumulators=int16: use one of int32, float64"),
    "bits": (lambda: as_device(wide(), ROW, weight_bits=1), "weight_bits=1: use 2 to 16"),
    "refresh": (lambda: as_device(wide(), ROW, refresh=-1), "refresh=-1: use 1 or more calls, or 0 for never"),
    "half": (lambda: as_device(wide().half(), ROW.half()), "half precision, which does not tell levels apart"),
    "no example": (lambda: as_device(wide()), "give an example of a call"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line(case):
    run, reason = REFUSED[case]
    with pytest.raises(UserError, match=r"\A[^\n]*\Z") as caught:
        run()
    assert reason in str(caught.value)


class Offset(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.round().clamp(0, 3) + 0.5


def test_levels_with_an_offset_are_refused(monkeypatch):
    monkeypatch.setattr(quantizers, "_READERS", dict(quantizers._READERS))
    quantizers.register_quantizer(Offset, lambda module: Levels(torch.ones(()), 0, 3, 0.5))
    snn = convert(nn.Sequential(nn.Linear(2, 2), Offset(), nn.Linear(2, 2)).eval())
    with pytest.raises(UserError, match="^accumulators add whole events, and the levels of 1 have an offset$"):
        as_device(snn, torch.ones(1, 2))


def test_sums_up_to_the_largest_fit():
    """300 weights of the largest size, levels to 255: the bound is met at 15 bits and passed at 16."""
    snn = wide()
    nn.init.constant_(snn.net[1].weight, -0.3)
    snn.net[0].scale.data.fill_(1.0)
    device = as_device(snn, ROW, weight_bits=15)
    with device.carrying():
        device(255 * ROW)
        assert device.accumulators["1", 0].sums.tolist() == [[-300 * 255 * (2**14 - 1)] * 2]
    with pytest.raises(UserError, match=f"^1: its sums may reach {300 * 255 * (2**15 - 1):,}, which int32 does not"):
        as_device(snn, ROW, weight_bits=16)(ROW)
