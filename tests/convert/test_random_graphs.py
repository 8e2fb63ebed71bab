"""The founding claims on random networks of every kind of part, in float64, to the last bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ann2snn.convert import SpikingNetwork, convert
from ann2snn.ptq.calls import fresh, leaves
from tests.convert.random_graphs import BLOCKS, AsynchronousExecutor, Recipe, quantizers, read, recipes
from tests.helpers import assert_equal


def on_random_graphs(few: int, many: int, **more):
    """A test of a claim on few networks, and, as a slow one, on many."""

    def decorate(claim):
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(examples):
            run = given(recipe=recipes(), **more)(claim)
            settings(max_examples=examples, deadline=None, derandomize=True, database=None)(run)()

        return test

    return decorate


def answered(net, call) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in leaves(net(*fresh(call[0]), **fresh(call[1]))) if isinstance(leaf, Tensor)]


def assert_same(net, snn, call) -> None:
    expected, actual = answered(net, call), answered(snn, call)
    assert len(expected) == len(actual)
    for a, b in zip(actual, expected, strict=True):
        assert b.isfinite().all()
        assert_equal(a, b)


class Levels:
    """Monitor: the level of every neuron, call by call of its module, from the events alone; and all events."""

    def __init__(self, snn: SpikingNetwork) -> None:
        self.snn, self.events = snn, 0.0
        self.held = {(n, turn): level.clone() for _, n in snn.neurons() for turn, level in enumerate(n.states)}
        self.pass_, self.turns = -1, {}

    def record(self, neuron, events, is_count):
        if self.pass_ != self.snn.clock.chunk:
            self.pass_, self.turns = self.snn.clock.chunk, {}
        # Steps that stand beside each other come one by one, from neurons that are called once.
        turn = self.turns[neuron] = 0 if self.snn.folds_time else self.turns.get(neuron, -1) + 1
        levels = neuron.levels
        held = self.held.setdefault((neuron, turn), torch.full_like(events[0], min(max(0, levels.lo), levels.hi)))
        for event in events:
            held += event
            assert levels.lo <= held.min() and held.max() <= levels.hi
        self.events += float(events.abs().sum())


def quantized_levels(net, call) -> list[Tensor]:
    """Of every call of every quantizer, in the order in which they run."""
    found = []
    handles = [m.register_forward_hook(lambda m, args, out: found.append(read(m, args[0])[3])) for m in quantizers(net)]
    answered(net, call)
    for handle in handles:
        handle.remove()
    return found


@on_random_graphs(12, 300)
def test_layer_sync_settled_and_burst_are_the_quantized_network(recipe: Recipe):
    net, call = recipe.network(), recipe.call(0)
    for how in (
        {},
        {"schedule": "stream", "settle_steps": "auto"},
        {"schedule": "stream", "burst": 2**recipe.bits - 1},
    ):
        snn = convert(net, **how)
        with snn.monitored(levels := Levels(snn)):
            assert_same(net, snn, call)
        expected = quantized_levels(net, call)
        assert len(expected) == len(levels.held)
        total = sum(float(level.sum()) for level in expected)
        assert sum(float(level.sum()) for level in levels.held.values()) == total


@on_random_graphs(8, 200, most=st.integers(1, 5), order=st.integers(0, 1000))
def test_any_order_of_firing_with_random_delays_ends_in_the_same_levels(recipe: Recipe, most: int, order: int):
    net = recipe.network()
    executor = AsynchronousExecutor(net, order, most)
    for seed in range(2):  # the second one from where the first one left it
        call = recipe.call(seed)
        silent = executor.run(lambda net, call=call: net(*fresh(call[0]), **fresh(call[1])))
        for a, b in zip(leaves(silent), answered(net, call), strict=True):
            assert_equal(a, b)
        for level, expected in zip(executor.levels.values(), quantized_levels(net, call), strict=True):
            assert_equal(level, expected)


@on_random_graphs(6, 200, change=st.sampled_from([0.02, 0.3, 1.0]), burst=st.sampled_from([1, 2]))
def test_carried_levels_answer_what_the_quantized_network_does_and_events_are_the_changes(
    recipe: Recipe, change: float, burst: int
):
    net = recipe.network()
    calls = [recipe.call(0)]
    for seed in range(1, 4):
        calls.append(recipe.call(seed, calls[-1], change))
    sync, stream = convert(net), convert(net, schedule="stream", burst=burst)
    with sync.carrying(), stream.carrying():
        before = None
        for call in calls:
            with sync.monitored(least := Levels(sync)), stream.monitored(more := Levels(stream)):
                assert_same(net, sync, call)
                assert_same(net, stream, call)
            now = quantized_levels(net, call)
            if before is not None:
                changes = sum(float((a - b).abs().sum()) for a, b in zip(now, before, strict=True))
                assert least.events == changes <= more.events
            before = now
    assert sync.restarts == stream.restarts == 1


@pytest.mark.parametrize("how", [{}, pytest.param({"schedule": "stream"}, marks=pytest.mark.slow)])
def test_a_thousand_carried_calls_do_not_drift(how):
    recipe = Recipe(("Skip",), "tensor", 3, True, "uniform", 5)
    net = recipe.network()
    snn, call = convert(net, **how), recipe.call(0)
    with snn.carrying():
        for seed in range(1000):
            call = recipe.call(seed, call, 0.2)
            if seed % 100 == 99:
                assert_same(net, snn, call)
            else:
                answered(snn, call)
    assert snn.restarts == 1


def test_the_random_networks_of_these_tests_are_busy():
    for kind in BLOCKS:
        for bits, by_hand in ((2, "uniform"), (4, "relu")):
            recipe = Recipe((kind, kind), "tensor", bits, True, by_hand, 1)
            levels = quantized_levels(recipe.network(), recipe.call(0))
            assert all(len(level.unique()) > 1 for level in levels)
            assert sum(len(level.unique()) for level in levels) > 2 * len(levels)
