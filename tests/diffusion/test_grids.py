"""Which times are visited, how many calls that makes, and which wishes are refused before the first of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ann2snn.config import (
    IMAGE_SAMPLERS,
    REAL_SKIPS,
    SAMPLER_NAMES,
    SDE_SAMPLERS,
    SKIPS,
    WHOLE_SKIPS,
    DiffusionConfig,
    SampleConfig,
)
from ann2snn.diffusion import SAMPLERS, check, options_of
from ann2snn.diffusion.process import check_sampling
from ann2snn.diffusion.samplers import real_times, whole_times
from ann2snn.diffusion.samplers.grids import REAL_TIMES, WHOLE_TIMES
from ann2snn.errors import UserError
from tests.diffusion.vp_exact import Draws, no_noise, normal, oracle, process

# ---- spacings -------------------------------------------------------------------------------------------------------


def test_schedules_of_ddpm_torch():
    vp = process()
    assert whole_times(vp, 10, "ddpm_torch_quadratic")[::-1] == [0, 10, 40, 89, 158, 247, 356, 484, 632, 800]
    assert whole_times(vp, 10, "ddpm_torch_linear")[::-1] == list(range(0, 1000, 100))
    assert whole_times(vp, 50, "ddpm_torch_linear")[0] == 980
    assert len(whole_times(vp, 300, "ddpm_torch_linear")) == 334
    distinct = [len(set(whole_times(vp, k, "ddpm_torch_quadratic"))) for k in (50, 100, 300)]
    assert distinct == [49, 97, 272]


@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize("skip", WHOLE_TIMES)
def test_short_processes_have_all_the_times_that_are_named(skip, steps):
    for count in range(1, steps + 1):
        times = whole_times(process(steps), count, skip)
        assert min(times) >= 0 and max(times) < steps and times == sorted(times, reverse=True)


def test_schedule_of_sddpm():
    vp = process()
    assert whole_times(vp, 50, "sddpm") == [*range(999, 0, -20), 0]
    assert whole_times(vp, 10, "sddpm") == [*range(999, 0, -100), 0]
    some = whole_times(vp, 300, "sddpm")
    assert some[:4] == [999, 995, 992, 989] and some[-3:] == [5, 2, 0]
    assert whole_times(vp, 1000, "sddpm") == list(range(999, -1, -1))


@given(steps=st.integers(1, 400), data=st.data(), skip=st.sampled_from(["uniform", "quadratic"]))
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
def test_own_whole_times_are_distinct_and_span_the_process(steps, data, skip):
    count = data.draw(st.integers(1, steps))
    times = whole_times(process(steps), count, skip)
    assert len(set(times)) == len(times) == count and times[0] == steps - 1
    assert times == sorted(times, reverse=True)
    assert count == 1 or times[-1] == 0


def test_quadratic_times_are_even_in_the_root():
    roots = np.sqrt(whole_times(process(), 30, "quadratic"))
    assert np.abs(np.diff(roots) - np.diff(roots).mean()).max() < 0.6  # rounding moves the root of a small time most


@pytest.mark.parametrize("skip", REAL_TIMES)
def test_real_times_are_even_in_what_they_are_named_after(skip):
    vp = process()
    times = np.array(real_times(vp, 9, skip))
    even = {"uniform": times, "quadratic": np.sqrt(times), "logsnr": vp.log_snr(times)}[skip]
    np.testing.assert_allclose(np.diff(even), np.diff(even).mean(), rtol=1e-9)
    assert (times[0], times[-1], len(times)) == (999, 0, 9) and (np.diff(times) < 0).all()
    assert real_times(vp, 1, skip) == (999.0,)


# ---- calls ----------------------------------------------------------------------------------------------------------

PLANS = [
    ("ddpm", {}),
    *(("ddim", {"steps": k, "skip": skip}) for skip in WHOLE_TIMES for k in (1, 7, 20)),
    ("ddim", {"steps": 7, "eta": 0.5}),
    ("ddim", {"steps": 7, "skip": "sddpm", "denoise": False}),
    ("ddim", {"steps": 20, "skip": "sddpm", "denoise": False}),
    *((name, {"steps": k, "skip": "quadratic"}) for name in ("ddpm_strided", "analytic_dpm") for k in (1, 6, 20)),
    *(("pndm", {"steps": k}) for k in (3, 4, 5, 6, 25)),
    *(("heun", {"steps": k, "skip": skip}) for skip in REAL_TIMES for k in (1, 2, 7, 8)),
    *(
        (name, {"steps": k, "order": order, "skip": skip})
        for name, largest in (
            ("dpm_solver", 3), ("dpmpp", 3), ("dpmpp_singlestep", 3), ("dpmpp_sde", 2), ("unipc", 3),
        )
        for order in range(1, largest + 1)
        for skip in REAL_TIMES
        for k in (order + 1, 6, 7, 8)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), PLANS)
def test_calls_are_as_announced(name, options):
    vp, sampler = process(20), SAMPLERS[name]
    image, draws, seen, hooked = normal(1, 1, 2, 2).clamp(-0.9, 0.9), Draws((2, 1, 2, 2)), [], []
    perfect = oracle(vp, image)

    def net(x, t):
        assert (t == t[0]).all() and t.shape == (2,)
        seen.append(float(t[0]))
        return perfect(x, t)

    if "statistics" in sampler.options:
        options = options | {"statistics": torch.ones(20)}
    announced = check(name, vp, **options)
    x_T = normal(2, 1, 2, 2, seed=1)
    out = sampler(net, vp, x_T, noise=draws, on_step=lambda t, x: hooked.append(t), **options)
    assert seen == pytest.approx(list(announced)) and seen == pytest.approx(hooked)
    assert sampler.calls(vp, **options) == len(seen)
    assert (draws.count > 0) == (sampler.draws_noise(options) and len(seen) > 1)
    if options.get("denoise", True):
        torch.testing.assert_close(out, image.expand_as(out), rtol=0, atol=1e-9)
    settings_ = {k: v for k, v in options.items() if k != "statistics"}
    assert SampleConfig(name, **settings_).calls(vp.config) == len(seen)


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 11, 20, 333, 334, 499, 500, 501, 999, 1000])
@pytest.mark.parametrize("skip", WHOLE_TIMES)
def test_settings_count_the_calls_of_every_spacing(skip, steps):
    vp = process()
    assert SampleConfig("ddim", steps, skip=skip).calls(vp.config) == SAMPLERS["ddim"].calls(vp, steps=steps, skip=skip)


@pytest.mark.parametrize("name", [name for name in IMAGE_SAMPLERS if SAMPLERS[name].stochastic is False])
def test_deterministic_samplers_draw_nothing(name):
    vp, image = process(20), normal(1, 1, 2, 2).clamp(-0.9, 0.9)
    for order in (1, 2, 3):
        options = {"order": order} if "order" in SAMPLERS[name].options else {}
        SAMPLERS[name](oracle(vp, image), vp, normal(1, 1, 2, 2), noise=no_noise, steps=8, **options)


def test_tables_agree():
    assert tuple(SAMPLERS) == SAMPLER_NAMES and SDE_SAMPLERS == ("gddim", "euler")
    assert (*IMAGE_SAMPLERS, "fsddim", *SDE_SAMPLERS) == SAMPLER_NAMES
    assert (set(WHOLE_SKIPS), set(REAL_SKIPS)) == (set(WHOLE_TIMES), set(REAL_TIMES))
    assert set(SKIPS) == set(WHOLE_TIMES) | set(REAL_TIMES)
    assert options_of(SampleConfig("dpmpp", steps=9, order=3, skip="logsnr")) == {
        "steps": 9,
        "order": 3,
        "skip": "logsnr",
    }
    assert options_of(SampleConfig()) == {}
    statistics = torch.ones(3)
    assert options_of(SampleConfig("analytic_dpm"), statistics)["statistics"] is statistics


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("euler", {}, "--sampler=euler"),
        ("ddpm", {"eta": 1.0}, "has no option eta"),
        ("ddpm", {"steps": 5}, "all 20 steps"),
        ("ddim", {}, "number of steps"),
        ("ddim", {"steps": 21}, "--sampler_steps=21"),
        ("ddim", {"steps": 0}, "--sampler_steps"),
        ("ddim", {"steps": 5, "eta": 1.1}, "--eta=1.1"),
        ("ddim", {"steps": 5, "skip": "logsnr"}, "--skip_type=logsnr"),
        ("ddim", {"steps": 1, "denoise": False}, "--denoise"),
        ("ddim", {"steps": 5, "order": 2}, "has no option order"),
        ("ddpm_strided", {"steps": 21}, "--sampler_steps=21"),
        ("analytic_dpm", {"steps": 5}, "analytic_statistics"),
        ("analytic_dpm", {"steps": 5, "statistics": torch.ones(19)}, "20 diffusion steps"),
        ("analytic_dpm", {"steps": 5, "statistics": torch.full((20,), torch.nan)}, "lack 4"),
        ("analytic_dpm", {"steps": 5, "statistics": torch.full((20,), torch.inf)}, "lack 4"),
        ("dpm_solver", {"steps": 3, "order": 3}, "at least 4 network calls"),
        ("dpm_solver", {"steps": 9, "order": 4}, "--sampler_order=4"),
        ("dpm_solver", {"steps": 9, "skip": "sddpm"}, "--skip_type=sddpm"),
        ("dpmpp", {"steps": 2}, "at least 3 network calls"),
        ("dpmpp", {"steps": 9, "order": 1.5}, "--sampler_order=1.5"),
        ("dpmpp_sde", {"steps": 9, "order": 3}, "--sampler_order=3"),
        ("dpmpp_singlestep", {"steps": 3, "order": 3}, "at least 4 network calls"),
        ("dpmpp_singlestep", {"steps": 9, "order": 4}, "--sampler_order=4: this sampler has orders 1 to 3"),
        ("dpmpp_singlestep", {"steps": 9, "skip": "trailing"}, "--skip_type=trailing"),
        ("pndm", {}, "number of steps"),
        ("pndm", {"steps": 2}, "--sampler_steps=2: --sampler=pndm needs 3"),
        ("pndm", {"steps": 5.5}, "--sampler_steps=5.5"),
        ("pndm", {"steps": 9, "order": 4}, "has no option order"),
        ("pndm", {"steps": 9, "skip": "quadratic"}, "has no option skip"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_call(name, options, message):
    vp = process(20)
    with pytest.raises(UserError, match=message):
        check(name, vp, **options)
    if name in SAMPLERS and set(options) <= {*SAMPLERS[name].options} and "steps" in options:

        def net(x, t):
            raise AssertionError("the network was called")

        with pytest.raises(UserError, match=message):
            SAMPLERS[name](net, vp, normal(1, 1, 2, 2), noise=no_noise, **options)


@pytest.mark.parametrize("process", ["cld", "blur"])
@pytest.mark.parametrize("name", [name for name in SAMPLER_NAMES if name not in SDE_SAMPLERS])
def test_samplers_of_diffusion_steps_refuse_other_processes(name, process):
    with pytest.raises(
        UserError, match=f"--sampler={name}: samples --process=vp only; --process={process} needs gddim"
    ):
        check_sampling(DiffusionConfig(process=process), 8, SampleConfig(name))


@pytest.mark.parametrize("name", ["dpm_solver", "dpmpp", "dpmpp_singlestep", "dpmpp_sde", "pndm"])
def test_solvers_refuse_processes_that_are_not_known_between_their_steps(name):
    with pytest.raises(UserError, match="xprev"):
        check(name, process(20, mean_type="xprev"), steps=5)
    with pytest.raises(UserError, match="λ = −∞"):
        check(name, process(20, mean_type="v", schedule="jsd"), steps=5)
    with pytest.raises(UserError, match="at least 2"):
        check(name, process(1), steps=5)


@pytest.mark.parametrize(
    "options",
    [{"sampler": "heum"}, {"skip": "cubic"}, {"order": 0}, {"order": 4}, {"order": "2"}, {"denoise": False}],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(UserError):
        SampleConfig(**options)
