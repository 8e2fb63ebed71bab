"""The founding claim, on random small networks in float64: the spiking network *is* the quantized network.

Relative L2 error 1e-12; spike counts exactly.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ann2snn.config import SpikingConfig
from ann2snn.convert import convert, relative_error
from tests.helpers import ann_counts, assert_close, assert_equal, random_ann, random_batch, spike_trains

EXACT = 1e-12
SETTLED = SpikingConfig("stream", settle_steps="auto")


@st.composite
def shapes(draw) -> dict:
    """Options of `random_ann`, bits aside."""
    mults = draw(st.sampled_from([(1,), (1, 2), (2, 1), (1, 1, 2)]))
    factor = 2 ** (len(mults) - 1)
    return {
        "ch": draw(st.sampled_from([4, 8])),
        "ch_mult": mults,
        "num_res_blocks": draw(st.integers(1, 2)),
        "norm_groups": draw(st.sampled_from([1, 2])),
        "in_channels": draw(st.sampled_from([1, 3])),
        "image_size": draw(st.sampled_from([size for size in range(4, 9) if size % factor == 0])),
        "seed": draw(st.integers(0, 10_000)),
    }


def on_random_networks(bits: tuple[int, ...], examples: int):
    def decorate(test):
        run = given(options=shapes(), bits=st.sampled_from(bits), n=st.integers(1, 3))(test)
        return settings(max_examples=examples, deadline=None, derandomize=True, database=None)(run)

    return decorate


def network(options: dict, bits: int, n: int):
    ann = random_ann(bits=bits, **options)
    return ann, *random_batch(ann, n, options["seed"])


def assert_counts_equal(trains: dict, levels: dict) -> None:
    assert trains.keys() == levels.keys()
    for name, events in trains.items():
        assert_equal(events.sum(0), levels[name])


@on_random_networks(bits=(2, 3, 4, 5, 8), examples=15)
def test_layer_sync_equals_the_quantized_network_and_its_counts_are_the_levels(options, bits, n):
    ann, x, t = network(options, bits, n)
    expected, levels = ann_counts(ann, x, t)
    out, trains = spike_trains(convert(ann), x, t)
    assert_close(out, expected, EXACT)
    assert_counts_equal(trains, levels)


@on_random_networks(bits=(2, 3, 4), examples=10)
def test_stream_equals_the_quantized_network_once_settled(options, bits, n):
    ann, x, t = network(options, bits, n)
    expected, levels = ann_counts(ann, x, t)
    snn = convert(ann, SETTLED)
    out, trains = spike_trains(snn, x, t)
    assert_close(out, expected, EXACT)
    assert_counts_equal(trains, levels)
    steps = {len(events) for events in trains.values()}
    assert steps == {2**bits - 1 + snn.last_settle_steps + 1}  # the last one is silent


@on_random_networks(bits=(2, 3), examples=10)
def test_settling_longer_than_needed_changes_nothing(options, bits, n):
    ann, x, t = network(options, bits, n)
    snn = convert(ann, SETTLED)
    with torch.no_grad():
        settled = snn(x, t)
        needed = snn.last_settle_steps
        for extra in (0, 3):
            steps = needed + extra
            with snn.running_as(SpikingConfig("stream", settle_steps=steps)):
                assert_close(snn(x, t), settled, EXACT)
                assert snn.last_settle_steps == steps


@on_random_networks(bits=(2, 3), examples=10)
def test_after_settling_every_level_is_the_quantizers_and_stays(options, bits, n):
    ann, x, t = network(options, bits, n)
    _, levels = ann_counts(ann, x, t)
    snn = convert(ann, SETTLED)
    with torch.no_grad(), snn.carrying():
        snn(x, t)
        for _ in range(2):
            for name, neuron in snn.neurons():
                assert_equal(neuron.states[0], levels[name])
            snn._chunk((x, t), {}, 5)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("norm", "neuron"), [("cumulative", "bounded"), ("per_step", "reference")])
@on_random_networks(bits=(2, 3), examples=5)
def test_time_outside_or_inside_the_layers_is_the_same(signed, norm, neuron, options, bits, n):
    ann, x, t = network(options, bits, n)
    snn = convert(ann, schedule="stream", signed=signed, stream_norm=norm, if_neuron=neuron)
    steps = snn.clock.spike_steps

    def run(*chunks: int) -> torch.Tensor:
        snn.reset()
        answer = None
        for size in chunks:
            answer = snn._chunk((x, t), {}, size, answer)
        return answer

    with torch.no_grad():
        whole = run(steps)
        assert_close(run(*[1] * steps), whole, EXACT)
        assert_close(run(1, steps - 1), whole, EXACT)
        snn.reset()
        assert_close(snn(x, t), whole, EXACT)


@pytest.mark.parametrize(("weight_bits", "weight_quant"), [(4, "apot"), (4, "uniform"), (2, "apot")])
def test_quantized_weights_convert_exactly_too(weight_bits, weight_quant):
    ann = random_ann(bits=3, weight_bits=weight_bits, weight_quant=weight_quant)
    x, t = random_batch(ann)
    expected, levels = ann_counts(ann, x, t)
    for config in (SpikingConfig(), SETTLED):
        out, trains = spike_trains(convert(ann, config), x, t)
        assert_close(out, expected, EXACT)
        assert_counts_equal(trains, levels)


def test_fractional_diffusion_times_convert_exactly_too():
    ann = random_ann(bits=2)
    x, _ = random_batch(ann)
    t = torch.tensor([3.25, 11.5])
    expected, _ = ann_counts(ann, x, t)
    for config in (SpikingConfig(), SETTLED):
        assert_close(spike_trains(convert(ann, config), x, t)[0], expected, EXACT)


def test_thresholds_below_the_smallest_scale_are_lifted_alike_on_both_sides():
    ann = random_ann(bits=2)
    ann.tail[1].act_alpha.data.fill_(-0.5)
    x, t = random_batch(ann)
    expected, _ = ann_counts(ann, x, t)
    assert_close(spike_trains(convert(ann), x, t)[0], expected, EXACT)


def test_the_random_networks_of_these_tests_are_busy():
    silent = saturated = layers = 0
    for seed in range(10):
        ann = random_ann(seed, bits=3)
        _, levels = ann_counts(ann, *random_batch(ann, 2, seed))
        for level in levels.values():
            layers += 1
            silent += level.max() == 0
            saturated += level.min() == 7
    assert silent + saturated < 0.02 * layers


def test_without_settling_stream_is_close_but_not_equal():
    # Keeps the equalities above honest: they do not hold by themselves.
    ann = random_ann(bits=3)
    x, t = random_batch(ann)
    expected, _ = ann_counts(ann, x, t)

    def error(**options) -> float:
        return relative_error(spike_trains(convert(ann, schedule="stream", **options), x, t)[0], expected)

    assert 1e-3 < error() < 1
    assert error(settle_steps=2) < error()
    assert error(signed=False, settle_steps="auto") > 1e-3
    assert error(stream_norm="per_step", if_neuron="reference") > 1e-3
