"""Bursts in the last step of the window: late charge still finds its spikes, and `stream` is exact at T steps."""

import itertools

import pytest
import torch

from ann2snn import UserError
from ann2snn.config import SpikingConfig
from ann2snn.convert import convert
from ann2snn.finetune import Networks, make_subject, subject_loss, tied_proxy
from tests.helpers import ann_counts, assert_close, assert_equal, random_ann, random_batch, spike_trains


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


def test_a_network_with_bursts_can_be_tuned_through_them():
    ann = random_ann()
    snn = convert(ann, SpikingConfig("stream", burst=2))
    subject = make_subject("tail", Networks(ann, snn, tied_proxy(ann, snn)))
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
