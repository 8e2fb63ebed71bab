"""The bounded scan's hand-written reverse against autograd of the loop that specifies it, `kernels.surrogate`."""

import itertools

import pytest
import torch
from ann2snn.kernels.surrogate import if_scan_with_gradient
from torch import Tensor

from ann2snn.kernels import IFRule, IFState, if_scan
from tests.helpers import assert_equal

WINDOW = 7
SHAPE = (2, 3, 5, 4)
RULES = [IFRule(signed=signed, burst=burst) for signed in (True, False) for burst in (1, 3, WINDOW)]
rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{'' if rule.signed else 'un'}signed-{rule.burst}")
#: A chunk; chunks of all lengths; chunks that settle, bursts among them.
CUTS = [(7,), (1, 4, 2), (3, 5, 1, 3)]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def currents(steps: int, seed: int = 0) -> Tensor:
    """Quarters of 1 among others, which reach a threshold of 1 exactly, and both ends of the ramps. [L, *SHAPE]."""
    quarters = torch.randint(-5, 8, (steps, *SHAPE), generator=torch.Generator().manual_seed(seed)).double() / 4
    return torch.where(normal(seed, *SHAPE) > 0, quarters, 0.6 * normal(seed + 1, steps, *SHAPE) + 0.3)


def learn(scan, current, theta, charge, count, rule, cuts, losses: str) -> tuple[list[Tensor], list[Tensor]]:
    """(events and state, gradients) of a loss that weighs all values differently. losses: which of e, v, n it sees."""
    leaves = [leaf(value) for value in (current, theta, charge, count)]
    current, theta, charge, count = leaves
    state = IFState.rest(current[0], theta, charge)
    state.count = state.count + count
    events = torch.cat([scan(chunk, state, theta, rule, WINDOW) for chunk in current.split(cuts)])
    assert state.steps == sum(cuts) and state.total is None
    values = {"e": events, "v": state.membrane, "n": state.count}
    sum((normal(9 + index, *values[name].shape) * values[name]).sum() for index, name in enumerate(losses)).backward()
    return [value.detach() for value in values.values()], [
        torch.zeros_like(value) if value.grad is None else value.grad for value in leaves
    ]


def assert_alike(results: list[tuple[list[Tensor], list[Tensor]]]) -> None:
    (values, gradients), (wanted, slopes) = results
    for value, other in zip(values, wanted, strict=True):
        assert_equal(value, other)
    for gradient, slope in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-12 * max(1.0, float(slope.abs().max())))


@rules
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_the_gradient_is_that_of_the_loop(rule, cuts):
    per_channel = torch.tensor([1.0, 0.7, 1.3], dtype=torch.float64).view(3, 1, 1)
    count = torch.randint(0, WINDOW + 1, SHAPE, generator=torch.Generator().manual_seed(5)).double()
    started = itertools.product((per_channel[0, 0, 0], per_channel), (count, 0 * count), ("e", "evn"))
    for theta, first, losses in started:
        current, charge = currents(sum(cuts)), 0.5 + 0.25 * per_channel.round()
        given = (current, theta, charge, first, rule, cuts, losses)
        results = [learn(scan, *given) for scan in (if_scan, if_scan_with_gradient)]
        assert_alike(results)
        (events, *_), gradients = results[0]
        assert all(gradient.any() for gradient in gradients[:3])
        assert rule.burst == 1 or events.abs().max() > 1


# ---- by hand ---------------------------------------------------------------------------------------------------------


def slopes(rule: IFRule, *current: float, seen: int, window: int = 3) -> list[float]:
    """Gradient, in every current, of one neuron's spikes in step `seen`, from 0; θ = 1, initial charge 1/2."""
    leaf = torch.tensor(current, dtype=torch.float64).view(-1, 1).requires_grad_()
    theta = torch.ones((), dtype=torch.float64)
    if_scan(leaf, IFState.rest(leaf[0], theta), theta, rule, window)[seen].sum().backward()
    return leaf.grad.flatten().tolist()


def test_slopes_of_one_neuron():
    # V = 1 fires and leaves 0: the second spike rises with new charge, and falls with the charge the first one took.
    assert slopes(IFRule(), 0.5, 0.75, seen=0) == [1, 0]
    assert slopes(IFRule(), 0.5, 0.75, seen=1) == [0, 1]
    # V = 1.75 is past the ramp: its spike is certain, and all charge is there for the second, at V = 0.75 + 0.25.
    assert slopes(IFRule(), 1.25, 0.25, seen=0) == [0, 0]
    assert slopes(IFRule(), 1.25, 0.25, seen=1) == [1, 1]
    # V = 0.75 − 0.25 lies at the ends of both ramps, of a spike and, if signed, of one taken back.
    assert slopes(IFRule(), 1.25, -0.25, seen=1) == [2, 2]
    assert slopes(IFRule(signed=False), 1.25, -0.25, seen=1) == [1, 1]
    assert slopes(IFRule(), 0.0, seen=0) == [1]  # nothing to take back yet
    assert slopes(IFRule(), 1.0, 1.0, seen=1, window=1) == [0, 0]  # no room


def test_slopes_of_a_burst():
    """In the second step of a window of 2, of up to 3 spikes: floor(V) has the slope of V − 1/2 within its limits."""
    for current, wanted in {
        (-0.625, 1.75): [1, 1],  # V = 1.625, and n = 0 leaves room for two
        (-0.5, 2.75): [0, 0],  # two spikes, and V − 1/2 = 2.25 has no room
        (-0.5, 0.5): [0, 0],  # V − 1/2 = 0, a limit
        (0.5, 1.125): [0, 1],  # the first spike, on its ramp at V = 1, takes the charge it is made of
        (0.5, 2.125): [-1, 0],  # and where the window ends up full, it takes one from the burst
    }.items():
        assert slopes(IFRule(burst=3), *current, seen=1, window=2) == wanted


def test_gradients_of_the_first_count():
    """A burst into the bounds 0..T is worth one spike less for each spike sent before; other spikes do not care."""
    theta = torch.ones((), dtype=torch.float64)
    for burst, charge, wanted in ((1, 9.0, 0), (3, 9.0, -1), (3, -9.0, -1), (3, 0.1, 0)):
        count = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)  # alone wants a gradient
        state = IFState(torch.full((1, 1), charge, dtype=torch.float64), count, steps=2)
        events = if_scan(torch.zeros(1, 1, 1, dtype=torch.float64), state, theta, IFRule(burst=burst), 3)
        events.sum().backward()
        assert (0 if count.grad is None else float(count.grad)) == wanted
        assert float(count.detach()) == 1 and state.count is not count


# ---- what is kept, types, layouts ------------------------------------------------------------------------------------


def bytes_kept(current: Tensor, theta: Tensor) -> int:
    """Of all tensors that the scan holds on to, besides θ."""
    kept = []
    state = IFState(current[0].detach() * 0 + 0.5, current[0].detach() * 0)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        if_scan(current, state, theta, IFRule(burst=3), WINDOW)
    return sum(x.numel() * x.itemsize for x in kept if x.shape != theta.shape)


def test_a_byte_an_event_is_kept_and_more_where_thresholds_learn():
    current = currents(WINDOW).float().requires_grad_()
    theta, neurons = torch.tensor(1.0), current[0].numel()
    assert bytes_kept(current, theta) == WINDOW * neurons
    assert bytes_kept(current, leaf(theta)) == (WINDOW + 4 * WINDOW + 2 * 4) * neurons


def test_the_state_is_replaced_and_a_scan_without_gradient_goes_on_from_it():
    current, theta = currents(9), torch.tensor(1.0, dtype=torch.float64)
    whole = if_scan(current, IFState.rest(current[0], theta), theta, IFRule(burst=2), WINDOW)
    learning = leaf(current)
    state = IFState.rest(current[0], theta)
    first, count = state.membrane, state.count
    events = if_scan(learning[:4], state, theta, IFRule(burst=2), WINDOW)
    assert (first == 0.5).all() and not count.any()
    with torch.no_grad():
        rest = if_scan(learning[4:], state, theta, IFRule(burst=2), WINDOW)
    assert_equal(torch.cat([events.detach(), rest]), whole)
    events.sum().backward()  # what it kept is intact
    assert learning.grad[:4].any() and not learning.grad[4:].any()


def test_the_gradient_is_the_same_whatever_the_layout():
    current, theta = currents(4), torch.tensor([1.0, 0.7, 1.3], dtype=torch.float64).view(3, 1, 1)
    folded = current.flatten(0, 1).to(memory_format=torch.channels_last).view(current.shape)
    steps_inside = current.movedim(0, -1).contiguous().movedim(-1, 0)
    given = (theta, 0.5 * theta, torch.ones(SHAPE, dtype=torch.float64), IFRule(burst=3), (3, 1), "evn")
    wanted = learn(if_scan, current, *given)
    for other in (folded, steps_inside):
        assert_alike([learn(if_scan, other, *given), wanted])
    assert if_scan(leaf(folded), IFState.rest(current[0], theta), theta, IFRule(), 7).stride() == folded.stride()


@pytest.mark.parametrize("kinds", list(itertools.product([torch.bfloat16, torch.float32], repeat=3)), ids=str)
def test_types_are_those_of_the_loop(kinds):
    """current, membrane and θ in either type; spikes the same to the last bit, gradients up to rounding."""
    x, v, theta = (currents(6), 0.5 + 0 * normal(0, *SHAPE), torch.tensor([1.0, 0.75, 1.25]).view(3, 1, 1))
    for threshold, rule in itertools.product((theta, theta[0, 0, 0]), (IFRule(), IFRule(signed=False, burst=2))):
        results = []
        for scan in (if_scan, if_scan_with_gradient):
            leaves = [leaf(value.to(kind)) for value, kind in zip((x, v, threshold), kinds, strict=True)]
            state = IFState(leaves[1], torch.zeros_like(leaves[0][0]))
            events = torch.cat([scan(chunk, state, leaves[2], rule, 4) for chunk in leaves[0].split((4, 2))])
            ((normal(1, *x.shape).to(events.dtype) * events).sum() + state.membrane.sum()).backward()
            results.append(([events, state.membrane, state.count], [value.grad for value in leaves]))
        for value, other in zip(*(values for values, _ in results), strict=True):
            assert value.dtype == other.dtype
            assert_equal(value.detach(), other.detach())
        for gradient, other in zip(*(gradients for _, gradients in results), strict=True):
            assert gradient.dtype == other.dtype and gradient.shape == other.shape
            assert (gradient - other).norm() <= 0.02 * other.norm()


def test_a_gradient_of_the_gradient_is_refused():
    current, theta = leaf(currents(3)), torch.tensor(1.0, dtype=torch.float64)
    events = if_scan(current, IFState.rest(current[0], theta), theta, IFRule(), WINDOW)
    (gradient,) = torch.autograd.grad((events * current).sum(), current, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
