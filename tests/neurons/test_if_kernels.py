"""The neurons' laws, against loops in plain Python and against the quantizer they stand for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ann2snn.kernels import IFRule, IFState, if_scan, spread_counts
from quant.functional import uniform_levels
from tests.helpers import assert_equal

few = settings(max_examples=30, deadline=None, derandomize=True, database=None)
RULES = [IFRule(kind, signed) for kind in ("bounded", "reference") for signed in (True, False)]
rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind}-{'' if rule.signed else 'un'}signed")
steps = st.sampled_from([3, 7, 15])
seeds = st.integers(0, 10_000)
thetas = st.sampled_from([0.5, 1.0, 1.7])


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scan(current: torch.Tensor, theta: float, rule: IFRule, T: int) -> tuple[torch.Tensor, IFState]:
    threshold = torch.tensor(theta, dtype=torch.float64)
    state = IFState.rest(current[0], threshold)
    return if_scan(current, state, threshold, rule, T), state


def one_neuron(currents: list[float], theta: float, rule: IFRule, T: int) -> list[int]:
    """Fire at the threshold; take a spike back when the membrane is negative (reference: at most −1e-3)."""
    membrane, count, events = theta / 2, 0, []
    for current in currents:
        membrane += current
        event = 0
        if membrane >= theta and (rule.kind == "reference" or count < T):
            event = 1
        elif rule.signed and count > 0 and (membrane < 0 if rule.kind == "bounded" else membrane <= -1e-3):
            event = -1
        membrane -= event * theta
        count += event
        events.append(event)
    return events


@rules
@few
@given(T=steps, theta=thetas, seed=seeds)
def test_scan_equals_the_rule_in_words(rule, T, theta, seed):
    current = normal(2 * T, 1, 40, seed=seed) * theta
    events, _ = scan(current, theta, rule, T)
    for column in range(40):
        assert events[:, 0, column].tolist() == one_neuron(current[:, 0, column].tolist(), theta, rule, T)


@rules
@few
@given(T=steps, theta=thetas, seed=seeds)
def test_charge_is_conserved_and_the_count_is_the_sum_of_events(rule, T, theta, seed):
    current = normal(T, 2, 30, seed=seed)
    events, state = scan(current, theta, rule, T)
    assert_equal(state.count, events.sum(0))
    torch.testing.assert_close(state.membrane, theta / 2 + current.sum(0) - theta * state.count, rtol=0, atol=1e-12)
    assert (state.count >= 0).all()
    assert set(events.unique().tolist()) <= ({-1.0, 0.0, 1.0} if rule.signed else {0.0, 1.0})
    if rule.kind == "bounded":
        assert (events.cumsum(0) <= T).all()


@rules
@few
@given(T=steps, cut=st.integers(1, 14), seed=seeds)
def test_a_scan_continues_where_the_last_one_stopped(rule, T, cut, seed):
    current, theta = normal(16, 2, 10, seed=seed), torch.tensor(1.0, dtype=torch.float64)
    whole, end = scan(current, 1.0, rule, T)
    state = IFState.rest(current[0], theta)
    parts = [if_scan(piece, state, theta, rule, T) for piece in (current[:cut], current[cut:])]
    assert_equal(torch.cat(parts), whole)
    assert_equal(state.membrane, end.membrane)


@pytest.mark.parametrize("signed", [True, False])
@few
@given(bits=st.integers(2, 8), theta=thetas, seed=seeds)
def test_under_constant_current_a_bounded_neuron_counts_as_the_quantizer_rounds(signed, bits, theta, seed):
    T = 2**bits - 1
    current = normal(3, 50, seed=seed) * theta
    events, _ = scan(current.expand(T, 3, 50), theta, IFRule("bounded", signed), T)
    assert_equal(events.sum(0), uniform_levels(current, torch.tensor(theta, dtype=torch.float64), bits))


@pytest.mark.parametrize("signed", [True, False])
def test_on_a_tie_both_round_up(signed):
    # T·x/θ + 1/2 is whole, and every sum is exact in binary: x = k/2 with θ = 1 and T odd.
    current = torch.arange(-4, 5, dtype=torch.float64)[None] / 2
    events, _ = scan(current.expand(3, 1, 9), 1.0, IFRule("bounded", signed), 3)
    expected = [[min(max(math.floor(3 * x + 0.5), 0), 3) for x in current[0].tolist()]]
    assert events.sum(0).tolist() == expected
    assert uniform_levels(current, torch.tensor(1.0, dtype=torch.float64), 2).tolist() == expected


@few
@given(T=steps, theta=thetas, seed=seeds)
def test_given_quiet_steps_a_signed_bounded_neuron_ends_at_the_rounded_total(T, theta, seed):
    current = torch.cat([normal(T, 2, 50, seed=seed), torch.zeros(4 * T, 2, 50, dtype=torch.float64)])
    events, state = scan(current, theta, IFRule("bounded", True), T)
    expected = torch.floor(current.sum(0) / theta + 0.5).clamp(0, T)
    assert_equal(state.count, expected)
    assert not events[-1].any()


@few
@given(T=steps, theta=thetas, seed=seeds)
def test_an_unsigned_bounded_neuron_ends_at_or_above_the_rounded_total(T, theta, seed):
    current = torch.cat([normal(T, 2, 50, seed=seed), torch.zeros(4 * T, 2, 50, dtype=torch.float64)])
    _, state = scan(current, theta, IFRule("bounded", False), T)
    expected = torch.floor(current.sum(0) / theta + 0.5).clamp(0, T)
    assert (state.count >= expected).all() and (state.count > expected).any()


def test_the_reference_neuron_has_no_upper_bound_and_the_bounded_one_has():
    current = torch.full((10, 1, 1), 1.0, dtype=torch.float64)
    assert scan(current, 1.0, IFRule("reference", True), 3)[1].count.item() == 10
    assert scan(current, 1.0, IFRule("bounded", True), 3)[1].count.item() == 3


@pytest.mark.parametrize(("membrane", "reference", "bounded"), [(-0.5, -1, -1), (-(2**-11), 0, -1), (0.0, 0, 0)])
def test_inhibition_starts_at_minus_a_thousandth_or_below_zero(membrane, reference, bounded):
    # One spike leaves the membrane at 0.5; the second current pulls it to `membrane`.
    current = torch.tensor([1.0, membrane - 0.5], dtype=torch.float64).view(2, 1, 1)
    assert scan(current, 1.0, IFRule("reference", True), 3)[0].flatten().tolist() == [1, reference]
    assert scan(current, 1.0, IFRule("bounded", True), 3)[0].flatten().tolist() == [1, bounded]


@pytest.mark.parametrize("T", [1, 3, 7, 15, 31, 255])
def test_spread_counts_sum_up_evenly_and_are_the_train_of_constant_current(T):
    count = torch.arange(T + 1, dtype=torch.float64)[None]  # [1, T + 1]
    events = spread_counts(count, T)
    assert events.shape == (T, 1, T + 1) and events.dtype == torch.float64
    assert set(events.unique().tolist()) <= {0.0, 1.0}
    assert_equal(events.sum(0), count)
    ideal = torch.arange(1, T + 1, dtype=torch.float64)[:, None, None] * count / T
    assert (events.cumsum(0) - ideal).abs().max() <= 0.5  # at no time further than half a spike from even
    for theta in (1.0, 1.7):
        constant = (count * theta / T).expand(T, 1, T + 1)
        assert_equal(scan(constant, theta, IFRule("bounded", True), T)[0], events)
        assert_equal(scan(constant, theta, IFRule("reference", False), T)[0], events)


def test_spread_counts_of_float32_keeps_its_type_and_sums():
    count = torch.randint(0, 256, (2, 3, 4, 4)).float()
    assert spread_counts(count, 255).dtype == torch.float32
    assert_equal(spread_counts(count, 255).sum(0), count)
