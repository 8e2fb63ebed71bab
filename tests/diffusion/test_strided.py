"""Samplers on whole diffusion times against exact Gaussian conditionals, and the published programs' own endings."""

import math

import pytest
import torch

from ann2snn.config import MEAN_TYPES
from ann2snn.diffusion import analytic_statistics, sample_ddim, sample_ddpm
from ann2snn.diffusion.samplers import sample_analytic_dpm, sample_ddpm_strided, whole_times
from ann2snn.diffusion.samplers.strided import LAST_VARIANCE
from ann2snn.errors import UserError
from tests.diffusion.vp_exact import (
    Draws,
    gaussian_denoiser,
    in_terms_of,
    no_noise,
    normal,
    oracle,
    process,
    response,
)

skips = pytest.mark.parametrize("skip", ["uniform", "quadratic", "ddpm_torch_linear", "sddpm"])


def gaussian_statistics(vp, std: float) -> torch.Tensor:
    """Γ_t = E ε̂²: ε̂ = σ/v·x_t has the variance σ²/v, v = ᾱs² + 1 − ᾱ."""
    return (1 - vp.alphas_bar) / (vp.alphas_bar * std**2 + 1 - vp.alphas_bar)


def marginal(vp, std: float, t: int) -> float:
    return float(vp.alphas_bar[t] * std**2 + 1 - vp.alphas_bar[t])


def total_variance(row: torch.Tensor) -> float:
    return float((row**2).sum())


# ---- strided DDPM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("var_type", ["fixedlarge", "fixedsmall"])
@pytest.mark.parametrize("mean_type", MEAN_TYPES)
def test_on_all_steps_it_is_ddpm(mean_type, var_type, clip):
    vp = process(50, mean_type=mean_type, var_type=var_type)
    net = in_terms_of(vp, lambda x, t: torch.tanh(x))
    x_T = normal(2, 1, 4, 4)
    full = sample_ddpm(net, vp, x_T, noise=Draws(x_T.shape), clip=clip)
    got = sample_ddpm_strided(net, vp, x_T, noise=Draws(x_T.shape), steps=50, clip=clip)
    torch.testing.assert_close(got, full, rtol=1e-8, atol=1e-8)


@skips
@pytest.mark.parametrize("steps", [2, 5, 10])
def test_every_stride_keeps_the_variance_of_standard_normal_data(steps, skip):
    # For N(0, 1) data, q(x_s | x_t) has the variance β' = 1 − ᾱ_t/ᾱ_s: fixedlarge is exact whatever the stride.
    vp = process(100)
    calls = len(whole_times(vp, steps, skip))
    row = response(sample_ddpm_strided, vp, gaussian_denoiser(vp, 1.0), calls - 1, steps=steps, skip=skip)
    # The state at the last time has variance 1, and the image predicted there is √ᾱ_0 times it.
    assert total_variance(row) == pytest.approx(float(vp.alphas_bar[0]), rel=1e-12)


@skips
def test_the_small_variance_is_exact_for_one_point(skip):
    # With one image, x_s given x_t has the posterior variance: at every time the state is √ᾱ·image + σ·N(0, 1).
    vp = process(100, var_type="fixedsmall")
    zero, states = oracle(vp, torch.zeros(1, 1, 1, 1, dtype=torch.float64)), []
    calls = len(whole_times(vp, 8, skip))
    first = math.sqrt(float(1 - vp.alphas_bar[whole_times(vp, 8, skip)[0]]))
    response(
        lambda net, vp, x, **options: sample_ddpm_strided(
            net, vp, x * first, on_step=lambda t, x: states.append((t, total_variance(x) * 1e6)), **options
        ),
        vp,
        zero,
        calls - 1,
        steps=8,
        skip=skip,
    )
    assert len(states) == calls
    for t, variance in states:
        assert variance == pytest.approx(float(1 - vp.alphas_bar[t]), rel=1e-9)


@skips
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_with_eta_1_is_strided_ddpm_with_the_small_variance(skip, clip):
    vp = process(60, var_type="fixedsmall")
    x_T = normal(2, 1, 4, 4)
    ends = [
        sampler(lambda x, t: torch.tanh(x), vp, x_T, noise=Draws(x_T.shape), steps=7, skip=skip, clip=clip, **options)
        for sampler, options in ((sample_ddim, {"eta": 1.0}), (sample_ddpm_strided, {}))
    ]
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


def test_a_process_that_ends_in_pure_noise():
    for mean_type in ("xstart", "xprev", "v"):
        vp = process(20, schedule="jsd", mean_type=mean_type)
        image, x_T = normal(1, 1, 3, 3).clamp(-0.9, 0.9), normal(2, 1, 3, 3, seed=1)
        statistics = torch.ones(20)
        for sampler, options in (
            (sample_ddpm, {}),
            (sample_ddpm_strided, {"steps": 6}),
            (sample_ddim, {"steps": 6, "eta": 0.5}),
            (sample_analytic_dpm, {"steps": 6, "statistics": statistics}),
        ):
            out = sampler(oracle(vp, image), vp, x_T, noise=Draws(x_T.shape), **options)
            torch.testing.assert_close(out, image.expand_as(out), rtol=0, atol=1e-9)


# ---- Analytic-DPM ---------------------------------------------------------------------------------------------------


@skips
@pytest.mark.parametrize("std", [0.1, 0.5, 1.0])
def test_the_optimal_variance_is_that_of_the_exact_reverse_step(std, skip):
    # x_s given x_t is Gaussian for Gaussian data, so every state has the variance of q(x_t), whatever the stride.
    vp, states = process(100), []
    times = whole_times(vp, 6, skip)
    first = math.sqrt(marginal(vp, std, times[0]))
    response(
        lambda net, vp, x, **options: sample_analytic_dpm(
            net, vp, x * first, on_step=lambda t, x: states.append((t, total_variance(x) * 1e6)), **options
        ),
        vp,
        gaussian_denoiser(vp, std),
        len(times) - 1,
        steps=6,
        skip=skip,
        statistics=gaussian_statistics(vp, std),
    )
    assert [t for t, _ in states] == times
    for t, variance in states:
        assert variance == pytest.approx(marginal(vp, std, t), rel=1e-9)


@pytest.mark.parametrize("mean_type", MEAN_TYPES)
def test_statistics_are_the_mean_square_of_the_predicted_noise(mean_type):
    vp, std, times = process(40, mean_type=mean_type), 0.5, [0, 3, 20, 39]
    batches = [std * normal(2, 1, 50, 50, seed=seed) for seed in range(4)]
    generator = torch.Generator().manual_seed(0)
    got = analytic_statistics(in_terms_of(vp, gaussian_denoiser(vp, std)), vp, batches, times, generator)
    assert got.shape == (40,) and got.dtype == torch.float64
    exact = gaussian_statistics(vp, std)
    torch.testing.assert_close(got[times], exact[times], rtol=0.05, atol=0)  # five standard errors
    assert torch.isnan(got[[t for t in range(40) if t not in times]]).all()
    with pytest.raises(UserError, match="no images"):
        analytic_statistics(gaussian_denoiser(vp, std), vp, [], times)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_statistics_of_a_network_that_has_diverged_are_refused(bad):
    def net(x, t):
        return torch.where((t == 3)[:, None, None, None], bad, x)

    with pytest.raises(UserError, match=r"at times \[3\].*diverged"):
        analytic_statistics(net, process(10), [normal(2, 1, 2, 2)], [0, 3, 9])


def test_statistics_weigh_images_alike():
    vp, seen = process(10), []

    def net(x, t):
        seen.append(len(x))
        return torch.full_like(x, 2.0 if len(x) == 3 else 1.0)

    got = analytic_statistics(net, vp, [normal(3, 1, 2, 2), normal(1, 1, 2, 2)], [4])
    assert float(got[4]) == pytest.approx((3 * 4 + 1) / 4) and seen == [3, 1]


def test_the_variance_has_the_bounds_of_the_paper():
    vp, steps = process(100), 5
    times = whole_times(vp, steps, "uniform")
    zeros = torch.zeros(5, 1, 1, 1, dtype=torch.float64)
    spreads = {}
    for name, statistics, clip in (
        ("certain", torch.full((100,), 5.0), False),  # Γ > 1 would mean a negative variance of x_0
        ("unknown", torch.zeros(100), False),  # Γ = 0: as uncertain as data in [−1, 1] can be
        ("clipped", torch.zeros(100), True),
    ):
        states = []
        sample_analytic_dpm(
            oracle(vp, zeros[:1]),
            vp,
            torch.zeros(1, 1, 1, 1, dtype=torch.float64),
            noise=lambda: torch.ones(1, 1, 1, 1, dtype=torch.float64),
            steps=steps,
            statistics=statistics,
            clip=clip,
            on_step=lambda t, x, s=states: s.append(float(x)),
        )
        spreads[name] = states
    now, target = (float(vp.alphas_bar[t]) for t in times[:2])
    small = (1 - target) / (1 - now) * (1 - now / target)
    image = math.sqrt(target) * (1 - now / target) / (1 - now)
    assert spreads["certain"][1] == pytest.approx(math.sqrt(small))
    assert spreads["unknown"][1] == pytest.approx(math.sqrt(small + image**2))
    before, after = (float(vp.alphas_bar[t]) for t in times[-2:])
    kept = math.sqrt(before / after) * (1 - after) / (1 - before)
    assert spreads["clipped"][-1] - kept * spreads["clipped"][-2] == pytest.approx(math.sqrt(LAST_VARIANCE))
    assert spreads["unknown"][-1] - kept * spreads["unknown"][-2] > 2 * math.sqrt(LAST_VARIANCE)
    # E|σz| = 2·2/255 for standard normal z.
    assert math.sqrt(LAST_VARIANCE) * math.sqrt(2 / math.pi) == pytest.approx(4 / 255)


# ---- what other programs do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_sddpm_stops_at_t_0_without_a_last_call(steps):
    vp, calls = process(), []
    image, eps = normal(1, 1, 3, 3).clamp(-0.9, 0.9), normal(1, 1, 3, 3, seed=1)
    perfect = oracle(vp, image)
    x_T = vp.diffuse(image, torch.tensor([999]), eps)

    def net(x, t):
        calls.append(int(t[0]))
        return perfect(x, t)

    out = sample_ddim(net, vp, x_T, noise=no_noise, steps=steps, skip="sddpm", denoise=False, clip=False)
    assert len(calls) == min(steps, 999) and min(calls) > 0
    torch.testing.assert_close(out, vp.diffuse(image, torch.tensor([0]), eps), rtol=0, atol=1e-9)


def test_step_coefficients_of_ddpm_torch():
    # A step is x' = c1·x_0 + c2·x; the network says x_0 = t/1000 at time t.
    c1 = [1, 0.970732, 0.498603, 0.337456, 0.246312, 0.179143, 0.123366, 0.077807, 0.044153, 0.022398]
    c2 = [0, 0.030881, 0.552385, 0.753057, 0.866861, 0.935125, 0.972831, 0.990541, 0.997312, 0.999381]
    vp, states = process(mean_type="xstart"), {}
    out = sample_ddim(
        lambda x, t: (t / 1000).to(x).view(-1, 1, 1, 1),
        vp,
        normal(1, 1, 1, 1),
        noise=no_noise,
        steps=10,
        skip="ddpm_torch_linear",
        on_step=lambda t, x: states.update({t: float(x)}),
    )
    assert list(states) == list(range(900, -1, -100))
    following = [float(out), *(states[t] for t in range(0, 900, 100))]
    for k in range(10):
        assert following[k] == pytest.approx(c1[k] * k / 10 + c2[k] * states[100 * k], abs=3e-6)
