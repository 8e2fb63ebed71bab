"""The level that follows its target: its law, what it answers, and its gradient."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant.functional import uniform_levels
from torch import Tensor

from ann2snn.kernels import Levels, Neurons, Pace, follow
from ann2snn.kernels.follow import soft_follow
from quant import uniform_quantize
from tests.helpers import assert_close, assert_equal

few = settings(max_examples=30, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 10_000)
SHAPE = (2, 3, 5, 4)


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    """low ≤ values < high, as floats."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).double()


def ramp(steps: int, most: int | None = 1, settling: int = 0) -> tuple[Pace, ...]:
    """A window of `steps` steps and what comes after it; bursts of `most` from its last step on."""
    shares = [min(step / steps, 1.0) for step in range(1, steps + settling + 1)]
    return tuple(Pace(share, most if share == 1 else 1) for share in shares)


def neurons_of(step: float = 1.0, lo: int = 0, hi: int = 7, **more) -> Neurons:
    return Neurons(Levels(torch.tensor(step, dtype=torch.float64), lo, hi), **more)


# ---- the law ---------------------------------------------------------------------------------------------------------


def in_words(xs, level: int, paces, step, offset, charge, lo: int, hi: int, takes_back: bool):
    """(answers, levels, events) of one neuron, in exact arithmetic."""
    answers, levels, events = [], [], []
    for x, pace in zip(xs, paces, strict=True):
        share = Fraction(pace.share)
        target = min(max(math.floor(share * (Fraction(x) - offset) / step + charge), lo), hi)
        event = target - level
        if pace.most is not None:
            event = min(max(event, -pace.most), pace.most)
        if not takes_back:
            event = max(event, 0)
        level += event
        answers.append(float(step * level / share + offset))
        levels.append(level)
        events.append(event)
    return answers, levels, events


RULES = {
    f"{'' if takes_back else 'un'}signed, m = {most}, {lo}..{hi}, {where}": (takes_back, most, lo, hi, where)
    for takes_back, most, (lo, hi), where in itertools.product(
        (True, False), (1, 3, None), ((0, 7), (-3, 4)), ("plain", "charged", "offset")
    )
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def ruled(rule) -> tuple[Neurons, tuple[Pace, ...]]:
    """Neurons of 3 channels whose parameters are binary fractions, and 8 + 3 steps of a window of 8."""
    takes_back, most, lo, hi, where = rule
    step = float64(0.5, 1, 2).view(3, 1, 1) if where != "plain" else float64(0.5)[0]
    charge = float64(0.25, 0.5, 1.5).view(3, 1, 1) if where == "charged" else None
    offset = float64(-0.75, 0, 0.25).view(3, 1, 1) if where == "offset" else 0.0
    return Neurons(Levels(step, lo, hi, offset), charge, takes_back), ramp(8, most, settling=3)


@rules
def test_the_law_in_words(rule):
    neurons, paces = ruled(rule)
    x = integers(-40, 60, len(paces), *SHAPE) / 8  # sums and products are exact
    start = integers(neurons.levels.lo, neurons.levels.hi + 1, *SHAPE, seed=1)
    events: list[Tensor] = []
    answers, level = follow(x, start.clone(), neurons, paces, lambda event: events.append(event.clone()))
    step, charge, offset = (
        (value if isinstance(value, Tensor) else torch.tensor(0.5 if value is None else value))
        .expand(3, 1, 1)
        .flatten()
        for value in (neurons.levels.step, neurons.charge, neurons.levels.offset)
    )
    for n, c, h, w in itertools.product(*map(range, SHAPE)):
        at = (slice(None), n, c, h, w)
        own = [Fraction(float(value[c])) for value in (step, offset, charge)]
        bounds = neurons.levels.lo, neurons.levels.hi, neurons.takes_back
        wanted = in_words(x[at].tolist(), int(start[n, c, h, w]), paces, *own, *bounds)
        assert torch.stack(events)[at].tolist() == wanted[2]
        assert level[n, c, h, w] == wanted[1][-1]
        torch.testing.assert_close(answers[at], float64(*wanted[0]), rtol=1e-15, atol=1e-15)


@rules
@few
@given(cut=st.integers(1, 10), seed=seeds)
def test_chunks_join_up(rule, cut, seed):
    neurons, paces = ruled(rule)
    x = 3 * normal(11, *SHAPE, seed=seed)
    whole, end = follow(x, None, neurons, paces)
    first, level = follow(x[:cut], None, neurons, paces[:cut])
    second, level = follow(x[cut:], level, neurons, paces[cut:])
    assert_equal(torch.cat([first, second]), whole)
    assert_equal(level, end)


@pytest.mark.parametrize("takes_back", [True, False])
@few
@given(bits=st.integers(2, 8), theta=st.sampled_from([0.5, 1.0, 1.7]), seed=seeds)
def test_an_input_that_is_there_all_the_time_ends_at_the_quantizers_level(takes_back, bits, theta, seed):
    T, x = 2**bits - 1, normal(3, 50, seed=seed) * theta
    alpha = float64(theta)[0]
    levels = Levels(alpha / T, 0, T, scale=T / alpha)
    _, level = follow(x.expand(T, 3, 50), None, Neurons(levels, takes_back=takes_back), ramp(T))
    assert_equal(level, uniform_levels(x, alpha, bits))


@few
@given(late=st.integers(0, 6), seed=seeds)
def test_whatever_came_before_a_signed_neuron_ends_at_the_level_of_the_last_input(late, seed):
    x = torch.cat([3 * normal(7, 2, 50, seed=seed), (4 * normal(1, 2, 50, seed=seed + 1)).expand(7 + late, 2, 50)])
    quantized = torch.floor(x[-1] + 0.5).clamp(0, 7)
    events: list[Tensor] = []
    answers, level = follow(x, None, neurons_of(), ramp(7, settling=7 + late), lambda event: events.append(event.abs()))
    assert_equal(level, quantized)
    assert_equal(answers[-1], quantized)
    quiet = len(events) - int(torch.stack(events).flatten(1).any(1).nonzero()[-1]) - 1
    assert quiet >= late
    above = follow(x, None, neurons_of(takes_back=False), ramp(7, settling=7 + late))[1]
    assert (above >= quantized).all() and (above > quantized).any()


def test_on_a_tie_the_level_is_the_upper_one():
    halves = torch.arange(-9, 20, dtype=torch.float64)[None] / 2
    _, level = follow(halves.expand(7, 1, -1), None, neurons_of(), ramp(7))
    assert level[0].tolist() == [min(max(math.floor(x + 0.5), 0), 7) for x in halves[0].tolist()]


@pytest.mark.parametrize("takes_back", [True, False])
@pytest.mark.parametrize("burst", [2, 3, 7])
def test_a_burst_is_that_many_single_steps(takes_back, burst):
    x = 4 * normal(1, 2, 100)
    start = integers(0, 8, 2, 100)
    neurons = neurons_of(takes_back=takes_back)
    _, together = follow(x, start.clone(), neurons, (Pace(1.0, burst),))
    _, singly = follow(x.expand(burst, 2, 100), start.clone(), neurons, (Pace(1.0, 1),) * burst)
    assert_equal(together, singly)
    assert (together - start).abs().max() > 1


def test_a_quantizers_own_levels_are_those_of_a_window_that_has_passed():
    """Rounding half to even, as torchao does: in the last step alone, and not where a charge was learned."""
    halves = torch.arange(1, 12, dtype=torch.float64)[None] / 2
    levels = Levels(float64(1.0)[0], 0, 7, level=lambda x: x.round().clamp(0, 7))
    assert_equal(follow(halves[None], None, Neurons(levels), (Pace(1.0),))[1], halves.round().clamp(0, 7))
    for neurons, pace in ((Neurons(levels, float64(0.5)[0]), Pace(1.0)), (Neurons(levels), Pace(0.5))):
        expected = torch.floor(halves * pace.share + 0.5).clamp(0, 7)
        assert_equal(follow(halves[None], None, neurons, (pace,))[1], expected)
    x = halves.clone()
    levels = replace(levels, level=lambda x: x)  # answers with its argument, which must not be written to
    follow(x[None], torch.zeros_like(x), Neurons(levels), (Pace(1.0),))
    assert_equal(x, halves)


def test_a_level_is_worth_what_is_asked_of_it():
    """Thresholds in the weights of the next layers: a level is worth 1/T and an offset stays what it is."""
    x, neurons = 3 * normal(4, *SHAPE), Neurons(Levels(float64(0.6)[0], -2, 5, 0.3))
    for size in (float64(0.25)[0], float64(1, 2, 3).view(3, 1, 1)):
        answers, level = follow(x, None, neurons, ramp(4))
        sized, same = follow(x, None, replace(neurons, size=size), ramp(4))
        assert_equal(same, level)
        assert_close(sized - 0.3, (answers - 0.3) / 0.6 * size, 1e-14)


@pytest.mark.parametrize("rest", [True, False])
@pytest.mark.parametrize(("lo", "hi"), [(0, 7), (-3, 4), (2, 7)])
@pytest.mark.parametrize("learns", [True, False])
def test_a_monitor_gets_every_event(learns, lo, hi, rest):
    x = (3 * normal(9, *SHAPE)).requires_grad_(learns)
    neurons, events = neurons_of(lo=lo, hi=hi), []
    start = neurons.rest(x[0].detach()) if rest else integers(lo, hi + 1, *SHAPE)
    _, level = follow(x, None if rest else start.clone(), neurons, ramp(7, 3, 2), lambda e: events.append(e.clone()))
    assert len(events) == 9 and all(event.shape == SHAPE for event in events)
    assert_equal(start + torch.stack(events).sum(0), level.detach())
    events.clear()
    _, level = follow(x[:1].detach(), None, neurons, (Pace(1.0),), events.append)
    assert_equal(events[0] + neurons.levels.start, level)


# ---- shapes, types, NaN ----------------------------------------------------------------------------------------------


def test_a_level_of_another_shape_raises():
    for learns in (True, False):
        x = normal(3, *SHAPE).requires_grad_(learns)
        for shape in ((1, 3, 5, 4), (3, 5, 4), (2, 3, 5, 1)):
            with pytest.raises(ValueError, match="reset the network"):
                follow(x, torch.zeros(shape, dtype=torch.float64), neurons_of(), ramp(3))


def test_an_empty_batch():
    for learns, level in itertools.product((True, False), (None, torch.zeros(0, 3, 5, 4))):
        x = torch.zeros(3, 0, 3, 5, 4, requires_grad=learns)
        answers, level = follow(x, level, neurons_of(), ramp(3))
        assert answers.shape == x.shape and level.shape == x.shape[1:]
        assert not learns or torch.autograd.grad(answers.sum(), x)[0].shape == x.shape
    assert follow(torch.zeros(1, 0, 3), None, neurons_of(), (Pace(1.0),))[0].shape == (1, 0, 3)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("paces", [ramp(4), (Pace(1.0),) * 4, (Pace(1.0, 2),) * 4], ids=["ramp", "free", "bursts"])
def test_nan_in_nan_out_and_nothing_else(paces, learns):
    """The level stays, nothing is reported, other neurons do not notice, and the next number is answered as ever."""
    x = 3 * normal(4, *SHAPE)
    broken = x.clone()
    hole = torch.zeros(SHAPE, dtype=torch.bool)
    hole[0, 1, 2] = hole[1, 0, 0, 3] = True
    broken[1:3, hole] = math.nan
    wanted, _ = follow(x, None, neurons_of(), paces)
    events: list[Tensor] = []
    given = broken.clone().requires_grad_(learns)
    answers, level = follow(given, None, neurons_of(), paces, lambda event: events.append(event.clone()))
    assert_equal(answers.isnan(), broken.isnan())
    assert_equal(answers.detach()[:, ~hole], wanted[:, ~hole])
    assert not any(event.isnan().any() for event in events) and not level.isnan().any()
    assert not torch.stack(events)[1:3, hole].any()
    clean, _ = follow(x[[0, 3]], None, neurons_of(), (paces[0], paces[3]))  # as if those steps had not been
    assert_equal(answers.detach()[3, hole], clean[1, hole])
    if learns:
        (gradient,) = torch.autograd.grad(torch.where(answers.isnan(), 0, answers).sum(), given)
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(follow(leaf, None, neurons_of(), paces)[0].sum(), leaf)
        assert_equal(gradient[:, ~hole], expected[:, ~hole])


def test_nan_where_the_level_is_nowhere_yet():
    events: list[Tensor] = []
    x = float64(math.nan, 3.2)
    answers, level = follow(x[None, None], None, neurons_of(lo=2), (Pace(1.0),), events.append)
    assert answers[0, 0, 0].isnan() and answers[0, 0, 1] == 3
    assert level.tolist() == [[2, 3]] and events[0].tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("learns", [False, True])
def test_half_precision_in_the_same_out_and_levels_that_tell_apart(dtype, learns):
    """As float32 counts, and rounded once."""
    step, offset = torch.tensor(0.37), torch.tensor(0.21)
    neurons = Neurons(Levels(step, -40, 215, offset))
    x = (40 * normal(5, *SHAPE)).to(dtype)
    wanted, end = follow(x.float(), None, neurons, ramp(5, None))
    given = x.clone().requires_grad_(learns)
    answers, level = follow(given, None, neurons, ramp(5, None))
    assert answers.dtype == dtype and level.dtype == torch.float32
    assert_equal(level.detach(), end)
    assert_equal(answers.detach(), wanted.to(dtype))
    assert level.max() > 100
    if learns:
        (gradient,) = torch.autograd.grad(answers.float().sum(), given)
        leaf = x.float().requires_grad_()
        (expected,) = torch.autograd.grad(follow(leaf, None, neurons, ramp(5, None))[0].sum(), leaf)
        assert gradient.dtype == dtype
        assert_equal(gradient, expected.to(dtype))


def test_layouts_are_kept_and_change_nothing():
    x, neurons = 3 * normal(4, *SHAPE), neurons_of(0.7)
    wanted, end = follow(x, None, neurons, ramp(4))
    folded = x.flatten(0, 1).to(memory_format=torch.channels_last).view(x.shape)
    others = {"channels last": folded, "steps inside": x.movedim(0, -1).contiguous().movedim(-1, 0)}
    others["gapped"] = torch.stack([x, x], -1)[..., 0]
    for other, learns in itertools.product(others.values(), (False, True)):
        answers, level = follow(other.detach().requires_grad_(learns), None, neurons, ramp(4))
        assert_equal(answers.detach(), wanted)
        assert_equal(level.detach(), end)
        if other is not others["gapped"]:
            assert answers.stride() == other.stride()


def test_the_level_is_overwritten_unless_a_gradient_is_wanted():
    x, level = 3 * normal(3, *SHAPE), torch.zeros(SHAPE, dtype=torch.float64)
    _, after = follow(x, level, neurons_of(), ramp(3))
    assert after is level and level.any()
    kept = level.clone()
    _, after = follow(x.clone().requires_grad_(), level, neurons_of(), ramp(3))
    assert after is not level
    assert_equal(level, kept)


# ---- gradients -------------------------------------------------------------------------------------------------------


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def learn(run, x: Tensor, level: Tensor, neurons: Neurons, paces, cuts, losses: str) -> tuple[list, list]:
    """([answers, level], gradients of x, level, step, charge, offset) of a loss that weighs all values differently.

    losses: whether it sees the answers ("a"), the last level ("k") or both.
    """
    given = neurons.levels
    leaves = [leaf(v) if isinstance(v, Tensor) else None for v in (x, level, given.step, neurons.charge, given.offset)]
    x, level, step, charge, offset = leaves
    learning = replace(
        neurons, charge=charge, levels=replace(given, step=step, offset=0.0 if offset is None else offset)
    )
    answers = []
    for chunk, part in zip(x.split(cuts), split(paces, cuts), strict=True):
        answer, level = run(chunk, level, learning, part)
        answers.append(answer)
    values = {"a": torch.cat(answers), "k": level}
    sum((normal(*values[name].shape, seed=ord(name)) * values[name]).sum() for name in losses).backward()
    gradients = [None if v is None else torch.zeros_like(v) if v.grad is None else v.grad for v in leaves]
    return [value.detach() for value in values.values()], gradients


def split(paces, cuts):
    ends = list(itertools.accumulate(cuts))
    return [paces[end - cut : end] for cut, end in zip(cuts, ends, strict=True)]


def by_autograd(x, level, neurons, paces):
    return soft_follow(x, level, neurons, paces, None, smooth=False)


def assert_alike(results) -> None:
    (values, gradients), (wanted, slopes) = results
    for value, other in zip(values, wanted, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-12)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert (gradient is None) == (slope is None)
        if slope is not None:
            torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-12 * max(1.0, float(slope.abs().max())))


@rules
@pytest.mark.parametrize("cuts", [(11,), (1, 4, 2, 4), (3, 5, 1, 2)], ids=str)
def test_the_reverse_is_that_of_the_specification(rule, cuts):
    neurons, paces = ruled(rule)
    # Eighths, which lie on all the bends exactly, among others.
    x = torch.where(normal(*SHAPE, seed=2) > 0, integers(-40, 60, 11, *SHAPE) / 8, 3 * normal(11, *SHAPE, seed=3))
    start = integers(neurons.levels.lo, neurons.levels.hi + 1, *SHAPE, seed=1)
    for size, losses in itertools.product((None, float64(0.3)[0]), ("a", "k", "ak")):
        sized = replace(neurons, size=size)
        results = [learn(run, x, start, sized, paces, cuts, losses) for run in (follow, by_autograd)]
        assert_alike(results)
        assert all(gradient is None or gradient.any() for gradient in results[0][1][:4] if losses != "k")


@pytest.mark.parametrize("takes_back", [True, False])
@pytest.mark.parametrize("most", [1, 2, None])
def test_the_smooth_scan_has_the_gradient_that_differences_find(most, takes_back):
    leaves = [leaf(2 * normal(3, 1, 2, 3)), leaf(normal(1, 2, 3, seed=1).abs()), leaf(float64(0.7, 1.1).view(2, 1))]
    leaves += [leaf(float64(0.4, 0.7).view(2, 1)), leaf(float64(0.2)[0])]

    def scan(x, level, step, charge, offset):
        return follow(x, level, Neurons(Levels(step, -1, 4, offset), charge, takes_back), ramp(3, most), None, True)

    assert torch.autograd.gradcheck(scan, leaves, eps=1e-7, atol=1e-6)


def slopes(*x: float, most: int | None = 1, seen: int, shares=(0.5, 1.0), hi: int = 3, takes_back=True) -> list[float]:
    """Gradient, in every input, of one neuron's answer in step `seen`, from level 0; Δ = 1."""
    given = float64(*x).view(-1, 1, 1).requires_grad_()
    paces = tuple(Pace(share, most) for share in shares)
    answers, _ = follow(given, None, neurons_of(hi=hi, takes_back=takes_back), paces)
    answers[seen].sum().backward()
    return given.grad.flatten().tolist()


def test_slopes_of_one_neuron():
    # Within reach and bounds the level is the target's, whatever came before.
    assert slopes(1.0, 0.9, seen=0) == [1, 0]
    assert slopes(1.0, 0.9, seen=1) == [0, 1]
    # u = 2 is out of reach of one spike: the level is one above the level before, which follows x/2 (answers: k/r).
    assert slopes(1.0, 2.0, seen=1) == [0.5, 0]
    assert slopes(1.0, 2.0, most=2, seen=1) == [0, 1]
    assert slopes(1.0, 2.0, most=None, seen=1) == [0, 1]
    # The first step was out of reach as well: nothing small changes anything.
    assert slopes(3.0, 2.5, seen=1, shares=(0.5, 1.0)) == [0, 0]
    # At a bound it forgets: u = 1.2 − 3 < 0, then up again.
    assert slopes(-1.0, 0.4, seen=1) == [0, 1]
    assert slopes(1.0, -0.6, seen=1) == [0, 0]
    assert slopes(1.0, 4.0, most=None, seen=1) == [0, 0]
    # A neuron that takes nothing back stays where the first step took it.
    assert slopes(1.8, 0.2, seen=1, takes_back=False) == [0.5, 0]
    assert slopes(1.8, 0.2, seen=1) == [0, 1]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_unlimited_it_is_the_quantizers_straight_through_gradient(bits):
    T, alpha = 2**bits - 1, float64(1.25)[0]  # T / alpha is exact, and so are both ends of the clip
    x = torch.cat([1.5 * normal(500), float64(0, -0.0, 1.25), torch.arange(T).double() * (1.25 / T)])
    upstream = normal(len(x), seed=1)
    results = []
    for run in (
        lambda x, a: uniform_quantize(x, a, bits),
        lambda x, a: follow(x[None, None], None, Neurons(Levels(a / T, 0, T, scale=T / a)), (Pace(1.0),))[0][0, 0],
    ):
        leaves = [leaf(x), leaf(alpha)]
        y = run(*leaves)
        y.backward(upstream)
        results.append([y.detach(), *(value.grad for value in leaves)])
    assert_equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1:], results[1][1:], rtol=1e-12, atol=1e-11)


def bytes_kept(x: Tensor, neurons: Neurons) -> int:
    """Of all tensors that the scan holds on to, besides its parameters."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        follow(x, None, neurons, ramp(7))
    return sum(value.numel() * value.itemsize for value in kept if value.dim())


def test_a_byte_a_step_is_kept_and_input_and_answers_where_thresholds_learn():
    x, step = leaf(3 * normal(7, *SHAPE).float()), torch.tensor(1.0)
    assert bytes_kept(x, Neurons(Levels(step, 0, 7))) == x.numel()
    assert bytes_kept(x, Neurons(Levels(leaf(step), 0, 7))) == (1 + 4 + 4) * x.numel()


def test_whoever_wants_a_gradient_alone_gets_it():
    """Each of the tensors that may learn, the others being constants."""
    x, neurons, paces = 3 * normal(5, *SHAPE), neurons_of(), ramp(5, 2)
    start, charge, offset = integers(0, 8, *SHAPE), float64(0.4)[0], float64(0.1)[0]
    full = learn(follow, x, start, replace(neurons, charge=charge, levels=replace(neurons.levels, offset=offset)),
                 paces, (5,), "ak")[1]  # fmt: skip
    for index in range(5):
        values = [x, start, neurons.levels.step, charge, offset]
        values[index] = leaf(values[index])
        given, level, step, first, shift = values
        answers, last = follow(given, level.clone() if index != 1 else level,
                               Neurons(Levels(step, 0, 7, shift), first), paces)  # fmt: skip
        loss = sum((normal(*v.shape, seed=ord(name)) * v).sum() for name, v in (("a", answers), ("k", last)))
        loss.backward()
        assert_equal(values[index].grad, full[index])


def test_a_gradient_of_the_gradient_is_refused():
    x = leaf(normal(3, *SHAPE))
    answers, _ = follow(x, None, neurons_of(), ramp(3))
    (gradient,) = torch.autograd.grad((answers * x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
