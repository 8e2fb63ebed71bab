"""Bursts in the last step of the window: late charge still finds its spikes, and `stream` is exact at T steps."""

import itertools

import pytest
import torch

from ann2snn import UserError
from ann2snn.config import SpikingConfig
from ann2snn.convert import convert
from ann2snn.finetune import make_subject, subject_loss, tied_proxy
from ann2snn.kernels import IFRule, IFState, if_scan
from tests.helpers import ann_counts, assert_close, assert_equal, random_ann, random_batch, spike_trains

signs = pytest.mark.parametrize("signed", [True, False])


def currents(seed: int, steps: int, count: int = 200) -> torch.Tensor:
    return torch.randn(steps, 1, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


@signs
@pytest.mark.parametrize("burst", [2, 3, 7])
def test_a_burst_is_that_many_single_steps_without_input(signed, burst):
    window, theta = 7, torch.tensor(1.3, dtype=torch.float64)
    current = currents(0, window)
    together = IFState.rest(current[0], theta)
    events = if_scan(current, together, theta, IFRule(signed=signed, burst=burst), window)
    singly = IFState.rest(current[0], theta)
    silence = torch.zeros_like(current[:1]).expand(burst - 1, -1, -1)
    single = if_scan(torch.cat([current, silence]), singly, theta, IFRule(signed=signed), window)
    assert_equal(events[:-1], single[: window - 1])
    assert_equal(events[-1], single[window - 1 :].sum(0))
    assert_close(together.membrane, singly.membrane, 1e-12)
    assert events[:-1].abs().max() == 1 and 1 < events[-1].abs().max() <= burst


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_stream_with_bursts_of_the_window_equals_the_ann_after_the_window(bits, seed):
    ann = random_ann(seed, bits=bits)
    window = 2**bits - 1
    x, t = random_batch(ann, seed=seed)
    expected, levels = ann_counts(ann, x, t)
    output, trains = spike_trains(convert(ann, SpikingConfig("stream", burst=window)), x, t)
    assert_close(output, expected, 1e-12)
    for name, events in trains.items():
        assert len(events) == window and events[:-1].abs().max() <= 1
        assert_equal(events.sum(0), levels[name])
    plain, _ = spike_trains(convert(ann, SpikingConfig("stream")), x, t)
    assert (plain - expected).norm() > 1e-2 * expected.norm()  # which a spike a step does not reach


def test_fewer_settling_steps_are_needed_the_longer_the_bursts():
    ann = random_ann(bits=3)
    x, t = random_batch(ann)
    needed = []
    for burst in (1, 2, 7):
        snn = convert(ann, SpikingConfig("stream", settle_steps="auto", burst=burst))
        with torch.no_grad():
            assert_close(snn(x, t), ann(x, t), 1e-12)
        needed.append(snn.last_settle_steps)
    assert needed == sorted(needed, reverse=True) and needed[0] > needed[-1] == 0


@signs
def test_gradients_of_bursts(signed):
    theta = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    current = currents(1, 3, 20).requires_grad_()
    rule = IFRule(signed=signed, burst=2)
    hard = if_scan(current, IFState.rest(current[0], theta), theta, rule, 3)
    with torch.no_grad():
        assert_equal(hard.detach(), if_scan(current, IFState.rest(current[0], theta), theta, rule, 3))
    smooth = IFRule(signed=signed, burst=2, smooth=True)

    def scan(current, theta):
        return if_scan(current, IFState.rest(current[0], theta), theta, smooth, 3)

    assert torch.autograd.gradcheck(scan, (current, theta), eps=1e-7, atol=1e-6)


def test_a_network_with_bursts_can_be_tuned_through_them():
    ann = random_ann()
    snn = convert(ann, SpikingConfig("stream", burst=2))
    subject = make_subject("tail", ann, snn, tied_proxy(ann, snn))
    subject_loss(subject, subject.example(random_batch(ann)), "bptt").backward()
    assert any(p.grad is not None and p.grad.any() for p in snn.net.tail.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"burst": 0}, "use 1 to"),
        ({"burst": 128}, "use 1 to"),
        ({"burst": 1.5}, "whole number"),
        ({"schedule": "layer_sync"}, "only --schedule=stream"),
        ({"if_neuron": "reference", "stream_norm": "per_step"}, "only --schedule=stream"),
    ],
)
def test_bursts_that_make_no_sense_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        SpikingConfig(**{"schedule": "stream", "burst": 2} | options)


def test_leaving_stream_leaves_bursts_behind():
    for burst, settle in itertools.product((1, 3), (0, "auto")):
        config = SpikingConfig("stream", burst=burst, settle_steps=settle)
        assert config.changed(schedule="layer_sync") == SpikingConfig("layer_sync")
