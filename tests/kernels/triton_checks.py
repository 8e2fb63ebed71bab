"""The Triton kernels against torch; not collected by name. `test_triton` runs them in a process of their own.

`slow` are those that the interpreter takes long for and that are further cases of what another one shows.

KERNEL_DEVICE=cuda runs them on a GPU; on the CPU they need TRITON_INTERPRET=1 from the start of the process.
"""

import contextlib
import dataclasses
import importlib
import itertools
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ann2snn import kernels
from ann2snn.kernels import Levels, LIFRule, Neurons, NormRule, Pace, kernels_by, lif_scan, triton_norm
from ann2snn.kernels import norm as norm_module
from quant import uniform_quantize
from tests.helpers import assert_equal, random_ann

DEVICE = torch.device(os.environ.get("KERNEL_DEVICE", "cpu"))
#: How far a target must be from a whole number, before it is rounded, for float32 to find the same as float64.
MARGIN = 1e-4
slow = pytest.mark.slow


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def fail(*_):
    raise AssertionError("the other implementation ran")


@contextlib.contextmanager
def triton_alone() -> Iterator[None]:
    """By Triton, and fail where a norm kernel falls back to torch."""
    with pytest.MonkeyPatch.context() as patch, kernels_by("triton"):
        patch.setattr(norm_module, "norm_follow_reference", fail)
        yield


# ---- lif_scan --------------------------------------------------------------------------------------------------------


def lif_both_ways(current: Tensor, rule: LIFRule, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(spikes, gradient) by Triton and by torch."""
    results = []
    for backend, name in (("triton", "LIFScanBackward"), ("torch", "_ScanBackward")):
        x = current.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        with kernels_by(backend):
            spikes = lif_scan(x, rule)
        assert type(spikes.grad_fn).__name__ == name
        (weights * spikes.float()).sum().backward()
        results.append((spikes.detach(), x.grad))
    return results


@pytest.mark.parametrize("surrogate", kernels.SURROGATES)
@pytest.mark.parametrize(
    ("shape", "every"),
    [pytest.param((7, 3, 2, 5), 1, marks=slow), ((1, 1, 37), 5), pytest.param((15, 1, 601), 5, marks=slow)],
)
def test_lif_scan(shape, every, surrogate):
    rules = list(enumerate(itertools.product((1.0, 0.8), *[(False, True)] * 3)))
    for seed, (decay, strict, soft, detach) in rules[::every]:
        rule = LIFRule(decay, 0.7, strict, soft, detach, surrogate)
        current = 0.8 * normal(*shape, seed=seed) + 0.3
        (spikes, gradient), (wanted, slope) = lif_both_ways(current, rule, normal(*shape, seed=99))
        assert_equal(spikes, wanted)
        assert wanted.any() and slope.any()
        torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-5)


def test_lif_scan_at_the_threshold_exactly():
    quarters = torch.randint(-2, 6, (6, 2, 100), generator=torch.Generator().manual_seed(0)).to(DEVICE) / 4
    for strict in (False, True):
        (spikes, _), (wanted, _) = lif_both_ways(quarters, LIFRule(strict=strict), torch.ones_like(quarters))
        assert_equal(spikes, wanted)
        assert bool(spikes[0][quarters[0] == 1].any()) is not strict


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lif_scan_of_low_precision(dtype):
    current = (0.8 * normal(4, 2, 30) + 0.3).to(dtype)
    (spikes, gradient), (wanted, slope) = lif_both_ways(current, LIFRule(decay=0.8), normal(4, 2, 30, seed=1))
    assert spikes.dtype == gradient.dtype == dtype
    assert_equal(spikes, wanted)
    torch.testing.assert_close(gradient, slope)


def test_lif_scan_of_other_layouts():
    plain = 0.8 * normal(4, 2, 3, 5, 4) + 0.3
    folded = plain.flatten(0, 1).to(memory_format=torch.channels_last).view(4, 2, 3, 5, 4)
    steps_inside = plain.permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3)
    gapped = torch.stack([plain, plain], dim=-1)[..., 0]
    weights = normal(4, 2, 3, 5, 4, seed=1)
    wanted = lif_both_ways(plain, LIFRule(), weights)[1]
    for current in (folded, steps_inside, gapped):
        spikes, gradient = lif_both_ways(current, LIFRule(), weights)[0]
        assert_equal(spikes, wanted[0])
        torch.testing.assert_close(gradient, wanted[1], rtol=1e-5, atol=1e-5)
    with kernels_by("triton"), torch.no_grad():
        assert lif_scan(folded, LIFRule()).stride() == folded.stride()


@pytest.mark.parametrize("rule", [LIFRule(), LIFRule(decay=0.8, strict=True, soft_reset=True)], ids=["hard", "soft"])
def test_lif_scan_of_nan(rule):
    """NaN from there on, and nothing else: also in the gradient."""
    current = 0.8 * normal(5, 3, 40) + 0.3
    broken = current.clone()
    broken[2, 1, 7] = broken[0, 0, 3] = float("nan")
    hole = broken.isnan().cumsum(0) > 0
    (spikes, gradient), (wanted, slope) = lif_both_ways(broken, rule, torch.ones_like(broken))
    assert_equal(spikes.isnan(), hole)
    assert_equal(wanted.isnan(), hole)
    (clean, clean_slope), _ = lif_both_ways(current, rule, torch.ones_like(broken))
    others = ~hole[-1]
    assert_equal(spikes[:, others], clean[:, others])
    assert_equal(gradient[:, others], clean_slope[:, others])
    assert_equal(gradient.isnan(), slope.isnan())


# ---- fake_quant ------------------------------------------------------------------------------------------------------


def quantized(backend: str, x: Tensor, alpha: Tensor, bits: int, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(y, dx, dalpha)."""
    x, alpha = x.detach().requires_grad_(), leaf(alpha)
    with kernels_by(backend):
        y = kernels.fake_quant(x, alpha, bits, uniform_quantize)
    assert type(y.grad_fn).__name__ == {"triton": "FakeQuantBackward", "torch": "_QuantizeBackward"}[backend]
    y.backward(g.to(y.dtype))
    return y.detach(), x.grad, alpha.grad


@pytest.mark.parametrize("bits", range(2, 9))
def test_fake_quant(bits):
    alpha, x, g = torch.tensor(1.3, device=DEVICE), normal(2, 3, 7, 61), normal(2, 3, 7, 61, seed=1)
    # Both ends of the clip, and points half way between two levels.
    ends = torch.tensor([0.0, -0.0, 1.3, float(torch.nextafter(alpha, 2 * alpha))], device=DEVICE)
    halves = (torch.arange(2**bits, device=DEVICE) - 0.5) * 1.3 / (2**bits - 1)
    x.view(-1)[: len(ends) + len(halves)] = torch.cat([ends, halves])
    y, dx, dalpha = quantized("triton", x, alpha, bits, g)
    wanted_y, wanted_dx, _ = quantized("torch", x, alpha, bits, g)
    assert_equal(y, wanted_y)
    assert_equal(dx, wanted_dx)
    # In float64 the levels of the halves may be others: their y is taken from float32, as the formula allows.
    x, g, alpha, y = x.double(), g.double(), alpha.double(), wanted_y.double()
    inside = (x > 0) & (x < alpha)
    exact = (g * (y - torch.where(inside, x, 0)) / alpha).sum()
    torch.testing.assert_close(dalpha.double(), exact, rtol=1e-5, atol=1e-4)


def test_fake_quant_gradients_against_float64():
    x, g, alpha = normal(1500), normal(1500, seed=1), torch.tensor(1.1, device=DEVICE)
    off_ties = ((x * (7 / alpha) + 0.5) - (x * (7 / alpha) + 0.5).round()).abs() > MARGIN
    x, g = x[off_ties], g[off_ties]
    results = quantized("triton", x, alpha, 3, g)
    for result, exact in zip(results, quantized("torch", x.double(), alpha.double(), 3, g.double()), strict=True):
        torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5)


def test_fake_quant_keeps_type_layout_and_nan():
    alpha, x = torch.tensor(2.0, device=DEVICE), normal(2, 3, 5, 4).to(memory_format=torch.channels_last)
    g = torch.ones((), device=DEVICE).expand(2, 3, 5, 4)
    assert_equal(quantized("triton", x, alpha, 2, g)[1], quantized("torch", x, alpha, 2, g)[1])
    assert quantized("triton", x, alpha, 2, g)[0].stride() == x.stride()
    for dtype in (torch.bfloat16, torch.float16):
        low = 100 * x.to(dtype)
        y, dx, dalpha = quantized("triton", low, 90 * alpha, 8, g)
        wanted_y, wanted_dx, wanted_dalpha = quantized("torch", low, 90 * alpha, 8, g)
        assert_equal(dx, wanted_dx)
        if DEVICE.type == "cpu" and dtype == torch.bfloat16:  # the interpreter cuts bfloat16 off instead of rounding
            torch.testing.assert_close(y, wanted_y, rtol=2**-7, atol=0)
            torch.testing.assert_close(dalpha, wanted_dalpha, rtol=0.05, atol=0)
        else:
            assert_equal(y, wanted_y)
            torch.testing.assert_close(dalpha, wanted_dalpha, rtol=1e-4, atol=1e-4)
    odd = torch.tensor([float("nan"), float("inf"), -float("inf")], device=DEVICE)
    with kernels_by("triton"):
        y = kernels.fake_quant(odd, alpha, 2, uniform_quantize)
    assert y[0].isnan() and y[1:].tolist() == [2, 0]
    _, dx, _ = quantized("triton", odd, alpha, 2, torch.ones_like(odd))
    assert_equal(dx, quantized("torch", odd, alpha, 2, torch.ones_like(odd))[1])


def test_a_network_trains_alike():
    net = random_ann().float().to(DEVICE)
    x, t = normal(2, 3, 4, 4), torch.tensor([1, 9], device=DEVICE)
    results = []
    for backend in ("triton", "torch"):
        net.zero_grad()
        with kernels_by(backend):
            out = net(x, t)
            out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in net.parameters())])
    assert_equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1:], results[1][1:], rtol=1e-4, atol=1e-4)


# ---- norm_follow -----------------------------------------------------------------------------------------------------


def affine(channels: int, groups: int) -> NormRule:
    return NormRule(groups, 1 + 0.3 * normal(channels, seed=7), 0.4 * normal(channels, seed=8) + 0.3)


def numbers(*values: float) -> Tensor:
    """[] or [C, 1, 1]."""
    found = torch.tensor(values, dtype=torch.float32, device=DEVICE)
    return found.view(-1, 1, 1) if len(values) > 1 else found[0]


def doubled(value):
    """Parameters in float64."""
    if isinstance(value, Tensor):
        return value.double()
    if isinstance(value, (NormRule, Neurons, Levels)):
        return dataclasses.replace(
            value, **{f.name: doubled(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return value


def ramp(steps: int, window: int, most: int | None) -> tuple[Pace, ...]:
    shares = [min(step / window, 1.0) for step in range(1, steps + 1)]
    return tuple(Pace(share, most if share == 1 else 1) for share in shares)


def followed(backend, x: Tensor, norm: NormRule, neurons: Neurons, paces, cuts=(), start=None, dtype=None):
    """(answers of all chunks [L, N, C, H, W], level). backend: a context manager."""
    level = torch.full_like(x[0], neurons.levels.start, dtype=norm.weight.dtype) if start is None else start.clone()
    answers, done = [], 0
    with backend:
        for chunk in x.split(list(cuts) or len(x)):
            part = paces[done : done + len(chunk)]
            answers.append(kernels.norm_follow(chunk, norm, level, neurons, part, dtype))
            done += len(chunk)
    return torch.cat(answers), level


def clear(x: Tensor, norm: NormRule, neurons: Neurons, paces) -> Tensor:
    """Neurons [N, C, H, W] whose target in float64 keeps `MARGIN` from every rounding, in every step."""
    exact, charge = doubled(neurons), neurons.charge
    wanted = torch.stack([doubled(norm).normalize(now.double()) for now in x]) * exact.levels.per_unit
    wanted *= torch.tensor([pace.share for pace in paces], device=DEVICE).double().view(-1, 1, 1, 1, 1)
    wanted += 0.5 if charge is None else charge.double()
    return ((wanted - wanted.round()).abs() > MARGIN).all(0)


CASES = {
    "odd": ((2, 6, 5, 3), 3, 3, (3,)),
    "one sample": ((1, 4, 3, 3), 2, 7, (7,)),
    "one step": ((2, 4, 2, 3), 4, 1, (1,)),
    "one value a group": ((2, 4, 1, 1), 4, 3, (3,)),
    "15 steps, one group": ((2, 5, 3, 7), 1, 15, (15,)),
    "a group of one channel, columns": ((2, 3, 9, 1), 3, 3, (3,)),
    "chunks, then settling": ((2, 6, 3, 5), 2, 7, (2, 4, 1, 3, 1)),
}
PARAMETERS = {
    "plain": Neurons(Levels(numbers(0.6), 0, 7)),
    "per channel": Neurons(Levels(numbers(0.5, 0.7, 0.9, 0.6, 1.1, 0.8), 0, 7), numbers(0.1, 0.9, 0.5, 0.3, 0.7, 1.4)),
    "signed levels": Neurons(Levels(numbers(0.4), -4, 3), numbers(0.3)),
    "sizes": Neurons(Levels(numbers(0.6), -1, 7, scale=numbers(1.7)), size=numbers(0.5, 1, 2, 3, 4, 5)),
}


#: Every case and all parameters at least once.
QUICK = set(zip(CASES, itertools.cycle(PARAMETERS)))


@pytest.mark.parametrize(
    ("case", "parameters"),
    [pytest.param(*pair, marks=[] if pair in QUICK else slow) for pair in itertools.product(CASES, PARAMETERS)],
)
def test_norm_follow(case, parameters):
    shape, groups, window, cuts = CASES[case]
    x, norm, channels = normal(sum(cuts), *shape, seed=3), affine(shape[1], groups), shape[1]
    given = PARAMETERS[parameters]
    narrow = {"charge": given.charge, "size": given.size}
    narrow = {name: v[:channels] if v is not None and v.dim() else v for name, v in narrow.items()}
    step = given.levels.step[:channels] if given.levels.step.dim() else given.levels.step
    for takes_back, most in ((True, 1), (True, None), (False, 3)):
        neurons = Neurons(dataclasses.replace(given.levels, step=step), takes_back=takes_back, **narrow)
        paces = ramp(sum(cuts), window, most)
        answers, level = followed(triton_alone(), x, norm, neurons, paces, cuts)
        torchs = kernels_by("torch")
        wanted, last = followed(torchs, x.double(), doubled(norm), doubled(neurons), paces, cuts)
        sure = clear(x, norm, neurons, paces) if shape[2] > 1 else torch.ones_like(level).bool()
        assert sure.float().mean() > 0.97
        torch.testing.assert_close((answers * sure).double(), wanted * sure, rtol=1e-6, atol=1e-6)
        assert_equal(level[sure].double(), last[sure])
        assert wanted.any() and (not takes_back or given.levels.lo == 0 or last.min() < 0 or shape[2] == 1)


@pytest.mark.parametrize(
    ("shape", "inner", "cuts", "tile"),
    [
        ((1, 8, 32, 32), False, (2,), None),
        ((1, 4, 64, 64), True, (1, 1), None),
        ((2, 3, 5, 9), False, (1, 3), 64),  # a last tile that is not full
        ((2, 3, 5, 9), True, (4,), 64),
    ],
    ids=["8192 values", "16384 values", "small tiles", "small tiles, channels innermost"],
)
def test_groups_larger_than_a_tile(shape, inner, cuts, tile, monkeypatch):
    """Around a mean that sums of squares would not survive."""
    monkeypatch.setattr(triton_norm, "TILE", tile or triton_norm.TILE)
    norm, neurons, steps = affine(shape[1], 1), Neurons(Levels(numbers(0.6), -2, 7)), sum(cuts)
    x, paces = normal(steps, *shape, seed=5) + 300, ramp(steps, max(steps - 1, 1), 3)
    sure = clear(x, norm, neurons, paces)
    wanted, last = followed(kernels_by("torch"), x.double(), doubled(norm), doubled(neurons), paces)
    if inner:
        x = x.flatten(0, 1).to(memory_format=torch.channels_last).view(x.shape)
    answers, level = followed(triton_alone(), x, norm, neurons, paces, cuts)
    assert sure.float().mean() > 0.97 and last.min() < 0
    torch.testing.assert_close((answers * sure).double(), wanted * sure, rtol=1e-6, atol=1e-6)
    assert_equal(level[sure].double(), last[sure])
    if tile:
        free = (Pace(1.0),)
        with triton_alone():
            counts = kernels.norm_follow(x[:1], norm, None, neurons, free, torch.uint8)
        kept, _ = followed(triton_alone(), x[:1], norm, neurons, free)
        torch.testing.assert_close((counts.float() - 2) * 0.6, kept)


@pytest.mark.parametrize("charge", [None, 0.2])
@pytest.mark.parametrize(("lo", "hi"), [(0, 255), (-3, 200), (2, 5)])
def test_at_rest_with_nothing_to_keep(lo, hi, charge):
    """One step to any level: the quantizer's, as floats and as bytes."""
    x, norm = normal(1, 2, 6, 5, 3, seed=3), affine(6, 2)
    neurons = Neurons(Levels(numbers(3 / hi), lo, hi), None if charge is None else numbers(charge))
    paces = (Pace(1.0),)
    sure = clear(x, norm, neurons, paces)
    with triton_alone():
        answers = kernels.norm_follow(x, norm, None, neurons, paces)
        counts = kernels.norm_follow(x, norm, None, neurons, paces, torch.uint8)
    with kernels_by("torch"):
        wanted = kernels.norm_follow(x.double(), doubled(norm), None, doubled(neurons), paces)
    assert counts.dtype == torch.uint8 and answers.dtype == torch.float32 and sure.float().mean() > 0.9
    torch.testing.assert_close((answers * sure).double(), wanted * sure, rtol=1e-6, atol=1e-6)
    assert_equal(counts[0][sure].double() + lo, (wanted[0][sure] / neurons.levels.step.double()).round())
    assert counts.unique().numel() > 2


@pytest.mark.parametrize("takes_back", [True, pytest.param(False, marks=slow)])
def test_levels_as_bytes(takes_back):
    x, norm = normal(3, 2, 6, 5, 3), affine(6, 2)
    for lo, size in itertools.product((0, -3), (None, numbers(0.1), numbers(1, 2, 3, 4, 5, 6))):
        neurons, paces = Neurons(Levels(numbers(0.7), lo, 5), None, takes_back, size), ramp(3, 3, 2)
        floats, level = followed(triton_alone(), x, norm, neurons, paces, (2, 1))
        counts, same = followed(triton_alone(), x, norm, neurons, paces, (2, 1), dtype=torch.uint8)
        assert counts.dtype == torch.uint8 and counts[-1].min() == (0 if takes_back else -lo)
        assert_equal(same, level)
        assert_equal(counts[-1].float() + lo, level)
        shares = numbers(*(pace.share for pace in paces)).view(-1, 1, 1, 1, 1)
        torch.testing.assert_close((counts.float() + lo) * (neurons.worth / shares), floats)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_answers_of_half_precision(dtype):
    """Rounded once from what float32 answers."""
    x, norm, neurons = normal(3, 2, 6, 5, 3), affine(6, 2), Neurons(Levels(numbers(0.01), 0, 255))
    answers, level = followed(triton_alone(), x, norm, neurons, ramp(3, 3, None), dtype=dtype)
    wanted, same = followed(triton_alone(), x, norm, neurons, ramp(3, 3, None))
    assert answers.dtype == dtype and level.dtype == torch.float32
    assert_equal(level, same)
    if DEVICE.type == "cpu" and dtype == torch.bfloat16:  # the interpreter cuts bfloat16 off instead of rounding
        torch.testing.assert_close(answers.float(), wanted, rtol=2**-7, atol=0)
    else:
        assert_equal(answers, wanted.to(dtype))


@pytest.mark.parametrize("tile", [2048, pytest.param(16, marks=slow)], ids=["in registers", "in tiles"])
def test_norm_follow_of_nan(tile, monkeypatch):
    """A group that holds NaN answers NaN and keeps its levels; other groups do not notice; then it is as ever."""
    monkeypatch.setattr(triton_norm, "TILE", tile)
    x, norm, neurons = normal(4, 2, 6, 5, 3), affine(6, 2), Neurons(Levels(numbers(0.4), -2, 5))
    broken, paces = x.clone(), (Pace(1.0, 1),) * 4
    broken[1, 0, 4, 3, 1], broken[2, 0, 3, 0, 0] = float("nan"), float("inf")
    hole = torch.zeros_like(x, dtype=torch.bool)
    hole[1:3, 0, 3:] = True
    answers, level = followed(triton_alone(), broken, norm, neurons, paces)
    wanted, last = followed(triton_alone(), x, norm, neurons, paces)
    torchs, torch_level = followed(kernels_by("torch"), broken, norm, neurons, paces)
    assert_equal(answers.isnan(), hole)
    assert_equal(torchs.isnan(), hole)
    others = ~hole[1]
    assert_equal(answers[:, others], wanted[:, others])
    assert_equal(level[others], last[others])
    # As if the two steps had not been.
    clean, after = followed(triton_alone(), x[[0, 3]], norm, neurons, paces[:2])
    assert_equal(answers[[0, 3]][:, hole[1]], clean[:, hole[1]])
    assert_equal(level[hole[1]], after[hole[1]])
    with triton_alone():
        free = kernels.norm_follow(broken[1:2], norm, None, neurons, (Pace(1.0),))
    assert_equal(free.isnan(), hole[1:2])


def test_norm_follow_of_other_layouts_and_types():
    def run(x: Tensor, *cuts: int) -> Tensor:
        return followed(triton_alone(), x, norm, neurons, paces, cuts)[0]

    x, norm, neurons, paces = normal(4, 2, 6, 5, 3), affine(6, 2), Neurons(Levels(numbers(0.7), 0, 5)), ramp(4, 3, 2)
    sure = clear(x, norm, neurons, paces)
    wanted = run(x, 4)
    folded = x.flatten(0, 1).to(memory_format=torch.channels_last).view(4, 2, 6, 5, 3)
    gapped, transposed = torch.stack([x, x], -1)[..., 0], x.mT.contiguous().mT
    sliced, expanded = torch.cat([x, x], 2)[:, :, :6], x[:1].expand(4, 2, 6, 5, 3)
    for other in (folded, gapped, transposed, sliced):
        for answers in (run(other, 4), run(other, 3, 1)):
            assert_equal(answers * sure, wanted * sure)
    assert_equal(run(expanded, 4), run(expanded.contiguous(), 4))
    level = torch.zeros_like(folded[0])
    with triton_alone():
        answers = kernels.norm_follow(folded, norm, level, neurons, paces)
    assert answers.stride() == folded.stride() and level.any()
    assert_equal(run(x.bfloat16(), 4), run(x.bfloat16().float(), 4))


# ---- what Triton does not do -----------------------------------------------------------------------------------------


def test_what_triton_cannot_do_is_torchs(monkeypatch):
    monkeypatch.setattr(triton_norm, "norm_follow", fail)
    x, norm, neurons, paces = normal(3, 2, 6, 5, 3), affine(6, 2), Neurons(Levels(numbers(0.7), 0, 3)), ramp(3, 3, 1)
    own = dataclasses.replace(neurons.levels, level=lambda x: x.round().clamp(0, 3))
    shifted = dataclasses.replace(neurons.levels, offset=0.1)
    for rule, by in ((norm, Neurons(own)), (norm, Neurons(shifted)), (doubled(norm), doubled(neurons))):
        answers, level = followed(kernels_by("triton"), x.to(rule.weight.dtype), rule, by, paces)
        assert answers.any() and answers.dtype == level.dtype == rule.weight.dtype
    monkeypatch.setattr(norm_module, "MAX_SAMPLE_SIZE", x[0, 0].numel())
    assert followed(kernels_by("triton"), x, norm, neurons, paces)[0].any()
    events: list[Tensor] = []
    with kernels_by("triton"):
        kernels.norm_follow(x, norm, torch.zeros_like(x[0]), neurons, paces, None, events.append)
        assert len(events) == 3
        current, theta = leaf(x.double()), numbers(0.7).double()
        assert type(lif_scan(current, LIFRule()).grad_fn).__name__ == "_ScanBackward"
        y = kernels.fake_quant(current, theta, 2, uniform_quantize)
        assert type(y.grad_fn).__name__ == "_QuantizeBackward"
        assert lif_scan(x[:, :0], LIFRule()).shape == (3, 0, 6, 5, 3)


def test_tensors_of_another_shape_are_refused_as_torch_refuses_them():
    """The kernels trust their pointers."""
    x, norm, neurons = normal(3, 2, 6, 5, 3), affine(6, 2), Neurons(Levels(numbers(0.7), 0, 3))
    for rule, like in ((norm, x[0, :1]), (affine(4, 2), x[0])):
        with kernels_by("triton"), pytest.raises((RuntimeError, ValueError)):
            kernels.norm_follow(x, rule, torch.zeros_like(like), neurons, ramp(3, 3, 1))


@pytest.mark.parametrize("kernel", ["triton_norm", "triton_lif", "triton_quant"])
def test_every_kernel_proves_itself_first_and_notices_a_wrong_answer(kernel, monkeypatch):
    module = importlib.import_module(f"ann2snn.kernels.{kernel}")
    assert module.probe(DEVICE)
    wrong = {
        "triton_norm": ("_on_device", lambda paces, device: torch.ones(len(paces), 2, device=device)),
        "triton_lif": ("lif_scan_reference", lambda current, rule: current * 1.0),
        "triton_quant": ("_programs", lambda x: (0,)),
    }[kernel]
    monkeypatch.setattr(module, *wrong)
    assert not module.probe(DEVICE)
