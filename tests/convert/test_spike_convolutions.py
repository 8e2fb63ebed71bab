"""Networks of few weight levels convolve spikes in integers: the same answers, and only where nobody would notice."""

import contextlib

import pytest
import torch
from torch.nn import functional as F

from ann2snn.config import MAX_BURST, SpikingConfig
from ann2snn.convert import convert
from ann2snn.kernels import SpikeConv, Spikes, kernels_by, spike_conv
from ann2snn.nets.parts import ResBlock, SpikeConv2d
from quant import quantized_once
from tests.helpers import assert_close, assert_equal, random_ann, random_batch

WEIGHTS = {
    "2 bits": {"weight_bits": 2},
    "APoT": {"weight_bits": 4},
    "uniform": {"weight_bits": 8, "weight_quant": "uniform"},
}
CLOSE = 1e-5  # float32; the networks are too small for a level to flip
MODES = [{"signed": False}, {}, {"burst": 3}, {"settle_steps": 2}, {"settle_steps": "auto"}]


@pytest.fixture(autouse=True)
def calls(monkeypatch) -> list[SpikeConv]:
    """The integer convolutions that were called; by their reference where this CPU has none."""
    seen = []
    compute = SpikeConv.__call__ if spike_conv._works() else spike_conv.spike_conv_reference
    monkeypatch.setattr(SpikeConv, "__call__", lambda self, *args: (seen.append(self), compute(self, *args))[1])
    monkeypatch.setattr(spike_conv, "_works", lambda: True)
    return seen


def example(bits: int = 3, **options):
    """(quantized ANN in float32, inputs)."""
    ann = random_ann(bits=bits, **{"weight_bits": 4} | options).float()
    x, t = random_batch(ann)
    return ann, (x.float(), t)


def convolutions(net: torch.nn.Module) -> int:
    """3×3 convolutions of residual blocks: all of them read spikes."""
    return 2 * sum(isinstance(m, ResBlock) for m in net.modules())


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("bits", [2, 8])
@torch.no_grad()
def test_the_quantized_network_and_its_counts_agree_to_the_last_bit(weights, bits, calls):
    ann, batch = example(bits, **WEIGHTS[weights])
    snn = convert(ann)
    plain = ann(*batch)
    with quantized_once(ann), quantized_once(snn):
        answer = ann(*batch)
        assert len(calls) == convolutions(ann)
        assert_equal(snn(*batch), answer)
        assert len(calls) == 2 * convolutions(ann)
    assert_close(answer, plain, CLOSE)


@torch.no_grad()
def test_under_autocast_they_agree_as_well(calls):
    """Integers are sums of their own, so the type of the real-valued convolutions is no matter."""
    ann, batch = example()
    snn = convert(ann)
    with quantized_once(ann), quantized_once(snn), torch.autocast("cpu", torch.bfloat16):
        assert_equal(snn(*batch), ann(*batch))
        assert len(calls) == 2 * convolutions(ann)
        stream = convert(ann, schedule="stream", settle_steps=2)
        with quantized_once(stream):
            assert stream(*batch).isfinite().all()
    assert len(calls) > 3 * convolutions(ann)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("spike_driven", [False, True])
@torch.no_grad()
def test_a_stream_answers_as_in_floats(mode, spike_driven, calls):
    ann, batch = example(spike_driven=spike_driven)
    snn = convert(ann, schedule="stream", **mode)
    plain = snn(*batch)
    assert not calls, "a single call is not worth the preparation"
    settled = snn.last_settle_steps
    with quantized_once(snn):
        assert_close(snn(*batch), plain, CLOSE)
    assert len({id(conv) for conv in calls}) >= convolutions(ann) + 2 * spike_driven
    assert snn.last_settle_steps == settled
    if mode == {"settle_steps": "auto"}:
        assert_close(plain, ann(*batch), CLOSE)


@torch.no_grad()
def test_an_integer_convolution_is_that_of_the_layers_own_weights(calls):
    ann, batch = example()
    with quantized_once(ann):
        ann(*batch)
        layer = next(m for m in ann.modules() if isinstance(m, SpikeConv2d) and m.reads_spikes())
        conv = layer._spike_conv()
        assert_close(conv.integers * conv.step, layer.quantized_weight(), 1e-6)
        x = torch.randint(0, 4, (2, layer.in_channels, 5, 5)).float()
        spikes = spike_conv.Spikes(x.to(torch.uint8), 0, torch.tensor(0.3))
        assert_close(layer(spikes), F.conv2d(0.3 * x, layer.quantized_weight(), layer.bias, padding=1), 1e-5)


def test_it_is_left_where_somebody_listens_or_precision_would_suffer(calls):
    ann, batch = example()
    snn = convert(ann, schedule="stream")

    def uses(net, *, held=True, grad=False, as_=contextlib.nullcontext) -> int:
        calls.clear()
        with quantized_once(net) if held else contextlib.nullcontext(), torch.set_grad_enabled(grad), as_():
            net(*(v.to(next(net.parameters()).dtype) if v.is_floating_point() else v for v in batch))
        return len(calls)

    every = convolutions(ann)
    assert uses(ann) == every and uses(snn) >= every
    assert uses(ann, held=False) == uses(snn, held=False) == 0
    assert uses(ann, grad=True) == uses(snn, grad=True) == 0
    assert uses(ann, as_=lambda: kernels_by("torch")) == 0
    published = SpikingConfig("stream", stream_norm="per_step", if_neuron="reference")
    assert uses(snn, as_=lambda: snn.running_as(published)) == 0
    heard = type("Heard", (), {"record": lambda *_, **__: None})()
    assert uses(snn, as_=lambda: snn.monitored(heard)) == 0
    handle = ann.downblocks[0].block1[2].register_forward_pre_hook(lambda *_: None)
    assert uses(ann) == every - 1
    handle.remove()
    for options in ({"weight_bits": 32}, {"weight_bits": 8}):
        assert uses(example(**options)[0]) == 0
    assert uses(random_ann(bits=3, weight_bits=4)) == 0, "float64"


@torch.no_grad()
def test_the_largest_bursts_fit_into_bytes_and_thresholds_of_single_channels_stay_floats(calls):
    ann, batch = example(bits=8)
    snn = convert(ann, schedule="stream", burst=MAX_BURST)
    plain = snn(*batch)
    with quantized_once(snn):
        assert_close(snn(*batch), plain, CLOSE)
    used = len(calls)
    assert used >= convolutions(snn)
    norm, neuron, *_ = snn.net.downblocks[0].block1
    neuron.expand((norm.num_channels, 1, 1), thresholds=True, charges=False)
    calls.clear()
    with quantized_once(snn):
        assert_close(snn(*batch), plain, CLOSE)
    assert len(calls) * convolutions(snn) == used * (convolutions(snn) - 1)


@pytest.mark.parametrize("where", ["input", "norm", "bias", "weight"])
@torch.no_grad()
def test_a_network_that_has_diverged_answers_so(where, calls):
    """A byte cannot hold NaN, and a plausible image must not come of it."""
    ann, (x, t) = example()
    block = ann.downblocks[0]
    broken = {"norm": block.block2[0].weight, "bias": block.block1[2].bias, "weight": block.block2[3].weight}
    broken.get(where, x).flatten()[0] = torch.nan
    for net in (ann, convert(ann), convert(ann, schedule="stream")):
        with quantized_once(net):
            assert net(x, t).isnan().any(), type(net)
    assert calls or where == "input"


def test_a_convolution_padded_by_name_reads_no_spikes(calls):
    layer = SpikeConv2d(4, 4, 3, padding="same", bits=2)
    with quantized_once(layer):
        assert not layer.reads_spikes()
        with pytest.raises(ValueError, match="ask `reads_spikes` first"):
            layer(Spikes(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), 0, torch.tensor(1.0)))
