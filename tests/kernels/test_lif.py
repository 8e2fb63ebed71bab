"""The leaky integrate-and-fire scan: published trains, and the gradient of a loop over time that autograd sees."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from ann2snn.kernels import SURROGATES, LIFRule, lif_scan
from tests.helpers import assert_equal

SDDPM = LIFRule()
FSDDIM = LIFRule(decay=0.8, strict=True, detach_reset=True, surrogate="triangle")

#: The sigmoids that the surrogates are the derivatives of, as functions of u − threshold.
SIGMOIDS = {
    "atan": lambda x: torch.atan(math.pi * x) / math.pi,
    "arctan": torch.atan,
    "triangle": lambda x: (x - x * x.abs()) * (x.abs() < 0.5),
    "rectangle": lambda x: x * (x.abs() < 0.5),
}


class Fire(torch.autograd.Function):
    """u − threshold → spike; the gradient is that of the sigmoid."""

    @staticmethod
    def forward(ctx, x: Tensor, strict: bool, surrogate: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x > 0 if strict else x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            SIGMOIDS[ctx.surrogate](x).sum().backward()
        return gradient * x.grad, None, None


def by_autograd(current: Tensor, rule: LIFRule) -> Tensor:
    """The equations, a time step after the other."""
    v, spikes = torch.zeros_like(current[0]), []
    for now in current:
        u = rule.decay * v + now
        o = Fire.apply(u - rule.threshold, rule.strict, rule.surrogate)
        spikes.append(o)
        reset = o.detach() if rule.detach_reset else o
        v = u - rule.threshold * reset if rule.soft_reset else u * (1 - reset)
    return torch.stack(spikes)


def train(rule: LIFRule, *current: float) -> list[int]:
    """Spikes of one neuron."""
    return lif_scan(torch.tensor(current), rule).int().tolist()


def fired_at(rule: LIFRule, constant: float, steps: int) -> list[int]:
    """Steps, from 1 on, at which a constant current makes one neuron fire."""
    return [step for step, spike in enumerate(train(rule, *[constant] * steps), 1) if spike]


# ---- golden values of the published programs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "constant", "steps", "at"),
    [
        (SDDPM, 0.4, 8, [3, 6]),
        (SDDPM, 0.5, 8, [2, 4, 6, 8]),  # reaches the threshold exactly
        (SDDPM, 1.0, 8, list(range(1, 9))),
        (SDDPM, 0.6, 4, [2, 4]),
        (FSDDIM, 0.6, 8, [2, 4, 6, 8]),
        (FSDDIM, 1.0, 8, [2, 4, 6, 8]),  # at the threshold, not above it
        (FSDDIM, 0.2, 500, []),
        (FSDDIM, 0.21, 14, [14]),
    ],
)
def test_constant_currents(rule, constant, steps, at):
    assert fired_at(rule, constant, steps) == at


def test_gradients_of_sddpm_flow_through_the_reset():
    current = torch.full((4,), 0.6, requires_grad=True)
    lif_scan(current, SDDPM).sum().backward()
    torch.testing.assert_close(current.grad, torch.tensor([0.318696, -0.089958, 0.937893, 0.716957]), rtol=0, atol=1e-6)
    current = torch.tensor([0.3, 0.9, -0.5, 1.6], requires_grad=True)
    spikes = lif_scan(current, SDDPM)
    (torch.arange(1, 5) * spikes).sum().backward()
    assert spikes.tolist() == [0, 1, 0, 1]
    wanted = torch.tensor([-1.609209, -1.877044, 3.848393, 3.640679])
    torch.testing.assert_close(current.grad, wanted, rtol=0, atol=2e-6)


def test_potentials_and_gradients_of_fsddim():
    current = torch.tensor([0.3, 0.9, -0.5, 1.6, 0.8, 0.9], requires_grad=True)
    spikes = lif_scan(current, FSDDIM)
    (kept,) = spikes.grad_fn.saved_tensors  # the potentials, and nothing else
    torch.testing.assert_close(kept, torch.tensor([0.3, 1.14, -0.5, 1.2, 0.8, 1.54]))
    (torch.arange(1, 7) * spikes).sum().backward()
    assert spikes.tolist() == [0, 1, 0, 1, 0, 1]
    torch.testing.assert_close(current.grad, torch.tensor([1.152, 1.44, 1.92, 2.4, 3.0, 0.0]), rtol=0, atol=1e-5)


def test_soft_reset_keeps_what_is_above_the_threshold():
    soft = LIFRule(decay=0.8, strict=True, soft_reset=True, detach_reset=True, surrogate="triangle")
    assert train(soft, 0.3, 0.9, -0.5, 1.6, 0.8, 0.9) == [0, 1, 0, 1, 1, 0]
    exact = LIFRule(soft_reset=True)
    assert fired_at(exact, 0.75, 8) == [2, 3, 4, 6, 7, 8]  # three spikes for every four steps: no charge is lost


def test_values_of_the_surrogates():
    def slopes(rule: LIFRule, *potentials: float) -> list[float]:
        current = torch.tensor([potentials], dtype=torch.float64, requires_grad=True)
        lif_scan(current, rule).sum().backward()
        return current.grad[0].tolist()

    of_triangle = slopes(FSDDIM, 0.4, 0.6, 0.99, 1.0, 1.25, 1.5)
    assert of_triangle == pytest.approx([0, 0.2, 0.98, 1, 0.5, 0], abs=1e-12)
    assert slopes(SDDPM, 1.0, 1 + 1 / math.pi, 0.0) == pytest.approx([1, 0.5, 1 / (1 + math.pi**2)])
    assert slopes(LIFRule(surrogate="arctan"), 0.0, 1.0, 4.0) == pytest.approx([0.5, 1, 0.1])
    assert slopes(LIFRule(surrogate="rectangle"), 0.4, 0.75, 1.0, 1.25, 1.6) == [0, 1, 1, 1, 0]
    # The middle of the slope is at the threshold, wherever that is.
    assert slopes(LIFRule(threshold=0.5, surrogate="triangle"), 0.5, 0.75) == [1, 0.5]


# ---- against autograd -----------------------------------------------------------------------------------------------

RULES = [
    LIFRule(decay, threshold, strict, soft, detach, surrogate)
    for decay, threshold, strict, soft, detach, surrogate in itertools.product(
        (1.0, 0.8), (1.0, 0.7), (False, True), (False, True), (False, True), SURROGATES
    )
]


def both_ways(rule: LIFRule, current: Tensor, seed: int) -> None:
    """The scan against `by_autograd`: spikes, and gradients of a loss that weighs every spike differently."""
    weights = torch.randn(current.shape, generator=torch.Generator().manual_seed(seed), dtype=current.dtype)
    results = []
    for scan in (lif_scan, by_autograd):
        leaf = current.clone().requires_grad_()
        spikes = scan(leaf, rule)
        (weights * spikes).sum().backward()
        results.append((spikes.detach(), leaf.grad))
    assert_equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_the_scan_and_its_gradient_are_those_of_a_loop(surrogate):
    for seed, rule in enumerate(rule for rule in RULES if rule.surrogate == surrogate):
        noise = torch.randn(7, 3, 2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        both_ways(rule, 0.8 * noise + 0.3, seed)


@pytest.mark.parametrize("strict", [False, True])
def test_at_the_threshold_exactly(strict):
    """Currents in quarters reach a threshold of 1 without rounding, at a third of all steps."""
    for seed, (decay, soft, detach) in enumerate(itertools.product((1.0, 0.5), (False, True), (False, True))):
        rule = LIFRule(decay, 1.0, strict, soft, detach, "atan")
        quarters = torch.randint(-2, 6, (6, 200), generator=torch.Generator().manual_seed(seed)).double() / 4
        both_ways(rule, quarters, seed)
        spikes = lif_scan(quarters, rule)
        assert (spikes[0] == (quarters[0] > 1 if strict else quarters[0] >= 1)).all() and (quarters[0] == 1).any()


def test_the_gradient_is_the_same_whatever_the_layout_and_unneeded_potentials_are_not_kept():
    current = torch.randn(4, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.4
    leaf, last = current.clone().requires_grad_(), current.to(memory_format=torch.channels_last_3d).requires_grad_()
    for x in (leaf, last):
        (lif_scan(x, SDDPM) ** 2 * torch.arange(4).view(4, 1, 1, 1, 1)).sum().backward()
    assert_equal(leaf.grad, last.grad)
    assert lif_scan(current, SDDPM).grad_fn is None
    assert_equal(lif_scan(current, SDDPM), lif_scan(leaf, SDDPM).detach())


# ---- low precision --------------------------------------------------------------------------------------------------


def test_bfloat16_currents_are_integrated_in_float32():
    current = torch.tensor([255 / 256, 1 / 512, 1 / 512], dtype=torch.bfloat16, requires_grad=True)
    assert float((current[0] + current[1]).detach()) == 1  # what rounding to 8 bits would make of it
    spikes = lif_scan(current, SDDPM)
    assert spikes.dtype == torch.bfloat16 and spikes.tolist() == [0, 0, 1]
    spikes.float().sum().backward()
    assert current.grad.dtype == torch.bfloat16
    wide = current.detach().float().requires_grad_()
    lif_scan(wide, SDDPM).sum().backward()
    assert_equal(current.grad, wide.grad.bfloat16())


@pytest.mark.parametrize("rule", [SDDPM, FSDDIM, LIFRule(soft_reset=True)], ids=["SDDPM", "FSDDIM", "soft reset"])
@pytest.mark.parametrize("learns", [False, True])
def test_what_is_not_a_number_is_answered_so_from_there_on_and_nowhere_else(rule, learns):
    current = torch.linspace(-1, 2, 60).view(5, 12)
    broken = current.clone()
    broken[2, 3] = math.nan
    spikes, wanted = lif_scan(broken.requires_grad_(learns), rule), lif_scan(current, rule)
    assert spikes[2:, 3].isnan().all() and spikes.isnan().sum() == 3
    assert_equal(torch.where(spikes.isnan(), wanted, spikes).detach(), wanted)
