"""The convolution of spikes in integers is exact, and is given up where it would not be."""

import pytest
import torch
from torch.nn import functional as F

from ann2snn import kernels
from ann2snn.kernels import SpikeConv, Spikes, convolves_spikes, fits_spike_conv, kernels_by
from ann2snn.kernels import spike_conv as module
from ann2snn.kernels.spike_conv import LARGEST_BYTE, LARGEST_WEIGHT, MOST_WEIGHTS, spike_conv_reference
from tests.helpers import assert_equal

has_integers = pytest.mark.skipif(not module._works(), reason="no 8-bit dot products on this CPU, or in this torch")
SIZE, STEP = torch.tensor(0.37), torch.tensor(0.013)
CASES = {
    "3x3": (8, 17, 3, 1, 5),
    "wide": (300, 16, 3, 1, 4),
    "strided": (64, 33, 3, 2, 8),
    "1x1": (6, 4, 1, 1, 7),
}


def example(case: str, zero: int, count: int = 3) -> tuple[SpikeConv, Spikes, torch.Tensor]:
    c_in, c_out, kernel, stride, side = CASES[case]
    generator = torch.Generator().manual_seed(4)
    weight = torch.randint(-LARGEST_WEIGHT, LARGEST_WEIGHT + 1, (c_out, c_in, kernel, kernel), generator=generator)
    values = torch.randint(0, LARGEST_BYTE + 1, (count, c_in, side, side), generator=generator).to(torch.uint8)
    conv = SpikeConv(weight, STEP, (stride, stride), (kernel // 2, kernel // 2))
    return conv, Spikes(values, zero, SIZE), torch.randn(c_out, generator=generator)


@pytest.mark.parametrize("case", CASES)
def test_the_reference_is_the_convolution_of_what_spikes_and_weights_are_worth(case):
    conv, spikes, bias = example(case, zero=3)
    stride, padding, *_ = conv.sides
    currents = (spikes.bytes.double() - 3) * SIZE.double()
    expected = F.conv2d(currents, conv.integers * STEP.double(), bias.double(), stride, padding)
    torch.testing.assert_close(spike_conv_reference(conv, spikes, bias).double(), expected, rtol=1e-6, atol=1e-5)


@has_integers
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("zero", [0, 1, 127])
def test_integers_give_the_references_last_bit_whatever_the_batch(case, zero):
    """Sums of more than 2^24 included: both are rounded once."""
    conv, spikes, bias = example(case, zero)
    answer = conv(spikes, bias)
    assert answer.is_contiguous() and answer.dtype == torch.float32
    assert_equal(answer, spike_conv_reference(conv, spikes, bias))
    assert_equal(conv(spikes), spike_conv_reference(conv, spikes))
    for rows in ([1], [2, 0], [1] * 7, []):
        assert_equal(conv(spikes[torch.tensor(rows, dtype=torch.int64)], bias), answer[rows])


@has_integers
def test_outside_the_image_there_is_no_spike():
    conv, spikes, _ = example("3x3", zero=1)
    silent = Spikes(torch.full_like(spikes.bytes, 1), 1, SIZE)
    assert not conv(silent).any() and not silent.busy().any()
    silent.bytes[2, 0, 0, 0] = 0
    assert silent.busy().tolist() == [False, False, True]


def test_weights_must_fit():
    assert fits_spike_conv(torch.tensor([-127.0, 127.0]).view(1, 2, 1, 1))
    for unfit in (128.0, -128.0, torch.nan, torch.inf):
        assert not fits_spike_conv(torch.tensor([1.0, unfit]).view(2, 1, 1, 1))
    assert fits_spike_conv(torch.zeros(1, MOST_WEIGHTS, 1, 1))
    assert not fits_spike_conv(torch.zeros(1, MOST_WEIGHTS + 1, 1, 1))
    assert MOST_WEIGHTS * LARGEST_BYTE * LARGEST_WEIGHT <= 2**31 - 1


def test_it_is_chosen_for_what_it_is_exact_for_and_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(module, "_works", lambda: True)
    weight = torch.zeros(1)
    assert convolves_spikes(weight)
    assert not convolves_spikes(weight.double()) and not convolves_spikes(weight.to("meta"))
    with kernels_by("torch"):
        assert not convolves_spikes(weight)
    monkeypatch.setenv("ANN2SNN_KERNELS", "torch")
    assert not convolves_spikes(weight)
    assert kernels.SpikeConv is SpikeConv


@pytest.mark.parametrize("fault", ["no instructions", "no operator", "a wrong answer"])
def test_a_machine_that_cannot_do_it_is_noticed(fault, monkeypatch):
    def missing(self, spikes):
        raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qconv2d_pointwise'")

    right = lambda self, spikes: spike_conv_reference(SpikeConv(self.integers, 1 / SIZE, (1, 1), (1, 1)), spikes)  # noqa: E731
    saturated = lambda self, spikes: right(self, spikes).clamp(max=2**15)  # noqa: E731
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: fault != "no instructions", raising=False)
    monkeypatch.setattr(SpikeConv, "_sums", missing if fault == "no operator" else saturated)
    assert not module._works.__wrapped__()
