"""The published neuron and the even spread of a count, against the rule in words."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ann2snn.kernels import IFState, if_scan, spread_counts
from tests.helpers import assert_equal

few = settings(max_examples=30, deadline=None, derandomize=True, database=None)
signs = pytest.mark.parametrize("signed", [True, False])
steps = st.sampled_from([3, 7, 15])
seeds = st.integers(0, 10_000)
thetas = st.sampled_from([0.5, 1.0, 1.7])


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scan(current: Tensor, theta: float, signed: bool) -> tuple[Tensor, IFState]:
    threshold = torch.tensor(theta, dtype=torch.float64)
    state = IFState.rest(current[0], threshold)
    return if_scan(current, state, threshold, signed), state


def one_neuron(currents: list[float], theta: float, signed: bool) -> list[int]:
    """Fire at the threshold; take a spike back where the membrane after that is at most −1e-3."""
    membrane, count, events = theta / 2, 0, []
    for current in currents:
        membrane += current
        event = 0
        if membrane >= theta:
            event = 1
        elif signed and count > 0 and membrane <= -1e-3:
            event = -1
        membrane -= event * theta
        count += event
        events.append(event)
    return events


@signs
@few
@given(T=steps, theta=thetas, seed=seeds)
def test_scan_equals_the_rule_in_words(signed, T, theta, seed):
    current = normal(2 * T, 1, 40, seed=seed) * theta
    events, _ = scan(current, theta, signed)
    for column in range(40):
        assert events[:, 0, column].tolist() == one_neuron(current[:, 0, column].tolist(), theta, signed)


@signs
@few
@given(T=steps, theta=thetas, seed=seeds)
def test_charge_is_conserved_and_the_count_is_the_sum_of_events(signed, T, theta, seed):
    current = normal(T, 2, 30, seed=seed)
    events, state = scan(current, theta, signed)
    assert_equal(state.count, events.sum(0))
    torch.testing.assert_close(state.membrane, theta / 2 + current.sum(0) - theta * state.count, rtol=0, atol=1e-12)
    assert (state.count >= 0).all()
    assert set(events.unique().tolist()) <= ({-1.0, 0.0, 1.0} if signed else {0.0, 1.0})


@signs
@few
@given(T=steps, cut=st.integers(1, 14), seed=seeds)
def test_a_scan_continues_where_the_last_one_stopped(signed, T, cut, seed):
    current, theta = normal(16, 2, 10, seed=seed), torch.tensor(1.0, dtype=torch.float64)
    whole, end = scan(current, 1.0, signed)
    state = IFState.rest(current[0], theta)
    parts = [if_scan(piece, state, theta, signed) for piece in (current[:cut], current[cut:])]
    assert_equal(torch.cat(parts), whole)
    assert_equal(state.membrane, end.membrane)


def test_it_has_no_upper_bound():
    assert scan(torch.full((10, 1, 1), 1.0, dtype=torch.float64), 1.0, True)[1].count.item() == 10


@pytest.mark.parametrize(("membrane", "event"), [(-0.5, -1), (-(2**-11), 0), (0.0, 0)])
def test_inhibition_starts_at_minus_a_thousandth(membrane, event):
    # One spike leaves the membrane at 0.5; the second current pulls it to `membrane`.
    current = torch.tensor([1.0, membrane - 0.5], dtype=torch.float64).view(2, 1, 1)
    assert scan(current, 1.0, True)[0].flatten().tolist() == [1, event]


@signs
def test_the_smooth_scan_has_the_gradient_that_differences_find_and_the_hard_one_its_formula(signed):
    current, theta = (normal(3, 1, 20, seed=1) * 2).requires_grad_(), torch.tensor(1.1, dtype=torch.float64)
    theta.requires_grad_()

    def smooth(current: Tensor, theta: Tensor) -> Tensor:
        return if_scan(current, IFState.rest(current[0], theta), theta, signed, smooth=True)

    assert torch.autograd.gradcheck(smooth, (current, theta), eps=1e-7, atol=1e-6)
    one = torch.ones((), dtype=torch.float64)
    for value, slope in {0.25: 1.0, 0.5: 1.0, 1.0: 1.0, 1.25: 0.0, -0.25: 0.0}.items():  # V − 1/2; fires at V = 1
        given = torch.full((1, 1, 1), value, dtype=torch.float64).requires_grad_()
        events = if_scan(given, IFState.rest(given[0], one), one, signed)
        assert events.item() == (value >= 0.5)
        assert torch.autograd.grad(events.sum(), given)[0].item() == slope


@pytest.mark.parametrize("T", [1, 3, 7, 15, 31, 255])
def test_spread_counts_sum_up_evenly_and_are_the_train_of_constant_current(T):
    count = torch.arange(T + 1, dtype=torch.float64)[None]  # [1, T + 1]
    events = spread_counts(count, T)
    assert events.shape == (T, 1, T + 1) and events.dtype == torch.float64
    assert set(events.unique().tolist()) <= {0.0, 1.0}
    assert_equal(events.sum(0), count)
    assert_equal(spread_counts(-count, T).sum(0), -count)
    ideal = torch.arange(1, T + 1, dtype=torch.float64)[:, None, None] * count / T
    assert (events.cumsum(0) - ideal).abs().max() <= 0.5  # at no time further than half a spike from even
    for theta in (1.0, 1.7):
        constant = (count * theta / T).expand(T, 1, T + 1)
        assert_equal(scan(constant, theta, False)[0], events)


def test_spread_counts_of_float32_keeps_its_type_and_sums():
    count = torch.randint(0, 256, (2, 3, 4, 4)).float()
    assert spread_counts(count, 255).dtype == torch.float32
    assert_equal(spread_counts(count, 255).sum(0), count)
