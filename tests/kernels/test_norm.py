"""Norm and neuron in one function, against the two layers they stand for; and which implementation is chosen."""

import dataclasses
import math
import sys
import types

import pytest
import torch
from quant.functional import uniform_levels
from torch import Tensor
from torch.nn import functional as F

from ann2snn.kernels import Levels, Neurons, NormRule, Pace, choice, follow, kernels_by, norm_follow
from tests.helpers import assert_close, assert_equal

WINDOW = 7


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)


def ramp(steps: int, most: int | None = 1) -> tuple[Pace, ...]:
    shares = [min(step / WINDOW, 1.0) for step in range(1, steps + 1)]
    return tuple(Pace(share, most if share == 1 else 1) for share in shares)


NORM = NormRule(2, 1 + 0.3 * normal(6, seed=1), 0.4 * normal(6, seed=2) + 0.3)
STEP = column(0.2)[0, 0, 0]
NEURONS = {
    "plain": Neurons(Levels(STEP, 0, 7)),
    "per channel": Neurons(Levels(column(0.2, 0.3, 0.25, 0.1, 0.3, 0.2), 0, 7), column(0.1, 0.9, 0.5, 0.3, 0.7, 1.4)),
    "signed levels and a charge": Neurons(Levels(STEP, -4, 3), column(0.4)[0, 0, 0]),
    "offset": Neurons(Levels(STEP, -1, 7, column(0.1, 0.2, 0.3, -0.1, 0.0, 0.4))),
    "levels of its own": Neurons(Levels(STEP, 0, 7, level=lambda x: (x / 0.2).round().clamp(0, 7))),
    "sizes": Neurons(Levels(STEP, 0, 7), size=column(1, 2, 3, 4, 5, 6)),
}
cases = pytest.mark.parametrize("name", NEURONS)


@cases
@pytest.mark.parametrize(("takes_back", "most"), [(True, 1), (False, 1), (True, 3), (True, None)])
def test_it_is_the_norm_followed_by_the_neuron(name, takes_back, most):
    neurons, paces = dataclasses.replace(NEURONS[name], takes_back=takes_back), ramp(10, most)
    x = normal(10, 2, 6, 5, 3)
    levels, events = [neurons.rest(x[0]) for _ in range(2)], ([], [])
    reports = [lambda event, to=to: to.append(event.clone()) for to in events]
    for chunk, part in ((x[:2], paces[:2]), (x[2:6], paces[2:6]), (x[6:7], paces[6:7]), (x[7:], paces[7:])):
        normed = torch.stack([F.group_norm(now, 2, NORM.weight, NORM.bias, NORM.eps) for now in chunk])
        wanted, levels[0] = follow(normed, levels[0], neurons, part, reports[0])
        assert_close(norm_follow(chunk, NORM, levels[1], neurons, part, None, reports[1]), wanted, 1e-14)
        assert_equal(levels[1], levels[0])
    assert_equal(torch.stack(events[1]), torch.stack(events[0]))
    assert levels[0].unique().numel() > 2
    if takes_back and most is None:  # whatever came before, neurons that may go anywhere are where the quantizer is
        assert_equal(levels[1], neurons.target(normed[-1], 1))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_once_the_window_has_passed_levels_are_the_quantizers_bit_for_bit(bits, dtype):
    x = normal(2, 6, 5, 3).to(dtype).requires_grad_()
    norm, T = NormRule(3, NORM.weight.to(dtype), NORM.bias.to(dtype)), 2**bits - 1
    alpha = torch.tensor(0.7, dtype=dtype)
    neurons = Neurons(Levels(alpha / T, 0, T, scale=T / alpha))
    wanted = uniform_levels(F.group_norm(x, 3, norm.weight, norm.bias), alpha, bits)
    kept = torch.zeros_like(wanted)
    for level in (None, kept):
        answers = norm_follow(x[None], norm, level, neurons, (Pace(1.0),))[0]
        assert_equal(answers, wanted * (alpha / T))
        assert not answers.requires_grad
    assert_equal(kept, wanted)
    assert wanted.unique().numel() > 2


@cases
def test_levels_as_bytes(name):
    neurons, x = NEURONS[name], normal(9, 2, 6, 5, 3)
    levels = [neurons.rest(x[0]) for _ in range(2)]
    paces, shares = ramp(9, 2), torch.tensor([pace.share for pace in ramp(9)]).double().view(-1, 1, 1, 1, 1)
    floats = norm_follow(x, NORM, levels[0], neurons, paces)
    counts = norm_follow(x, NORM, levels[1], neurons, paces, torch.uint8)
    assert counts.dtype == torch.uint8 and counts.min() == 0
    assert_equal(levels[1], levels[0])
    assert_equal(counts[-1].double() + neurons.levels.lo, levels[0])
    assert_close((counts.double() + neurons.levels.lo) * neurons.worth / shares + neurons.levels.offset, floats, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_answers_of_half_precision_are_those_of_full_precision_rounded_once(dtype):
    x, norm = normal(3, 2, 6, 5, 3).float(), NormRule(2, NORM.weight.float(), NORM.bias.float())
    neurons = Neurons(Levels(torch.tensor(0.013), -20, 235, torch.tensor(0.31)))
    levels = [neurons.rest(x[0]) for _ in range(2)]
    wanted = norm_follow(x, norm, levels[0], neurons, ramp(3, None))
    answers = norm_follow(x, norm, levels[1], neurons, ramp(3, None), dtype)
    assert answers.dtype == dtype and levels[1].dtype == torch.float32
    assert_equal(answers, wanted.to(dtype))
    # Inputs of half precision are read as they are, and answered as the norm's parameters are.
    assert norm_follow(x.to(dtype), norm, levels[1], neurons, ramp(3)).dtype == torch.float32


def test_nan_stays_in_its_group_and_leaves_no_trace():
    x, neurons = normal(4, 2, 6, 5, 3), NEURONS["plain"]
    broken, hole = x.clone(), torch.zeros(x.shape, dtype=torch.bool)
    broken[1, 0, 4, 3, 1], broken[2, 0, 3, 0, 0] = math.nan, math.inf
    hole[1:3, 0, 3:] = True
    paces, events = (Pace(1.0, 1),) * 4, []
    levels = [neurons.rest(x[0]) for _ in range(3)]
    answers = norm_follow(broken, NORM, levels[0], neurons, paces, None, lambda event: events.append(event.clone()))
    wanted = norm_follow(x, NORM, levels[1], neurons, paces)
    assert_equal(answers.isnan(), hole)
    assert_equal(answers[:, ~hole[1]], wanted[:, ~hole[1]])
    assert not torch.stack(events)[hole].any() and not torch.stack(events).isnan().any()
    norm_follow(x[[0, 3]], NORM, levels[2], neurons, paces[:2])  # as if the two steps had not been
    assert_equal(levels[0][hole[1]], levels[2][hole[1]])
    assert_equal(norm_follow(broken[1:2], NORM, None, neurons, (Pace(1.0),)).isnan(), hole[1:2])


def test_it_refuses_what_it_cannot_run():
    x, neurons = normal(3, 2, 6, 5, 3), NEURONS["plain"]

    def refused(match: str, x=x, level=x[0], **parts) -> None:
        with pytest.raises(ValueError, match=match):
            norm_follow(x, NORM, level, dataclasses.replace(neurons, **parts), ramp(len(x)))

    refused("reset the network", level=x[0, :1])
    refused("reset the network", x=x[0])
    refused("reset the network", level=None)  # of more than one step
    for shape in ((2, 6, 5, 3), (6,), (5, 1, 1), (6, 5, 3)):
        refused(r"use \[\] or \[6, 1, 1\]", levels=Levels(STEP.expand(shape), 0, 7))
        refused(r"use \[\] or \[6, 1, 1\]", charge=STEP.expand(shape))
        refused(r"use \[\] or \[6, 1, 1\]", size=STEP.expand(shape))


# ---- choice ----------------------------------------------------------------------------------------------------------

KERNEL = "triton_norm"


def test_a_cpu_has_torch_unless_triton_is_interpreted(monkeypatch):
    x = torch.ones(3)
    for setting in (None, "", "torch", "triton"):
        monkeypatch.setattr(choice.os, "environ", {} if setting is None else {choice.ENVIRONMENT: setting})
        assert not choice.runs_triton(KERNEL, x)
    monkeypatch.setattr(choice.os, "environ", {choice.ENVIRONMENT: "triton", "TRITON_INTERPRET": "1"})
    monkeypatch.setattr(choice, "has_triton", lambda: True)
    assert choice.runs_triton(KERNEL, x) and choice.runs_triton(KERNEL, x, x.bfloat16())
    for unfit in (x.double(), x.int(), x[:0], x.to("meta")):
        assert not choice.runs_triton(KERNEL, x, unfit)
    with kernels_by("torch"):
        assert not choice.runs_triton(KERNEL, x)
        with kernels_by("triton"):
            assert choice.runs_triton(KERNEL, x)
        assert not choice.runs_triton(KERNEL, x)
    monkeypatch.setattr(choice, "has_triton", lambda: False)
    assert not choice.runs_triton(KERNEL, x)


@pytest.fixture
def gpu_of(monkeypatch):
    """A GPU of such a compute capability, whose kernels' probes answer, or raise, what is given → names probed."""

    def make(capability: tuple[int, int], **probes: bool | Exception) -> list[str]:
        probed: list[str] = []

        def probe(name: str, device: torch.device) -> bool:
            assert device == torch.device("cuda", 0)
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            probed.append(name)
            if isinstance(probes[name], Exception):
                raise probes[name]
            return probes[name]

        for name in probes:
            module = types.SimpleNamespace(probe=lambda device, name=name: probe(name, device))
            monkeypatch.setitem(sys.modules, f"ann2snn.kernels.{name}", module)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        choice._works.cache_clear()
        return probed

    yield make
    choice._works.cache_clear()


def test_every_kernel_is_tried_on_a_gpu_once_and_one_that_fails_leaves_the_others(gpu_of):
    given = {"triton_quant": True, "triton_lif": False, "triton_norm": RuntimeError("out of registers\nand more")}
    probed = gpu_of((9, 0), **given)
    with torch.inference_mode():
        assert choice._works("triton_quant", 0)
        with pytest.warns(UserWarning, match="triton_lif does not work on GPU 0, torch runs instead: it answers wr"):
            assert not choice._works("triton_lif", 0)
        with pytest.warns(UserWarning, match="triton_norm does not work on GPU 0, .* instead: out of registers$"):
            assert not choice._works("triton_norm", 0)
        for name in 2 * list(given):
            assert choice._works(name, 0) == (given[name] is True)
    assert probed == list(given)


def test_a_gpu_that_is_too_old_has_torch_without_a_word(gpu_of):
    probed = gpu_of((7, 5), triton_norm=True)
    assert not choice._works(KERNEL, 0) and not probed


def test_a_name_that_is_no_backend_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="'cuda' is no kernel backend, use torch or triton"), kernels_by("cuda"):
        pass
    monkeypatch.setenv(choice.ENVIRONMENT, "fast")
    with pytest.raises(ValueError, match="ANN2SNN_KERNELS: 'fast'"):
        choice.runs_triton(KERNEL, torch.ones(1))
