"""DPM-Solvers: convergence on the exact flow of Gaussian data, what they reduce to, and what they have in common."""

import math

import pytest
import torch

from ann2snn.diffusion import sample_ddim
from ann2snn.diffusion.samplers import (
    sample_ddpm_strided,
    sample_dpm_solver,
    sample_dpmpp,
    sample_dpmpp_sde,
    sample_dpmpp_singlestep,
)
from tests.diffusion.vp_exact import (
    SCALE,
    Draws,
    flow_gain,
    gaussian_denoiser,
    in_terms_of,
    no_noise,
    normal,
    process,
    response,
)

STD = 0.3
SOLVERS = [(sampler, p) for sampler in (sample_dpm_solver, sample_dpmpp, sample_dpmpp_singlestep) for p in (1, 2, 3)]
solvers = pytest.mark.parametrize(("sampler", "order"), SOLVERS)


def flow_error(sampler, vp, steps: int, **options) -> float:
    """Relative error of the end of the probability flow of N(0, STD²) data."""
    row = response(sampler, vp, gaussian_denoiser(vp, STD), 0, steps=steps, **options)
    return abs(float(row[0]) / flow_gain(vp, STD) - 1)


@pytest.mark.parametrize(("schedule", "skip"), [("linear", "logsnr"), ("linear", "quadratic"), ("cosine", "logsnr")])
@solvers
def test_convergence_order(sampler, order, schedule, skip):
    vp = process(schedule=schedule)
    few = 384 if (sampler, order) == (sample_dpmpp_singlestep, 3) else 96  # 3S is late to show its order
    coarse, fine = (flow_error(sampler, vp, 1 + n, order=order, skip=skip) for n in (few, 2 * few))
    measured = math.log2(coarse / fine)
    # The first steps of 3M are of lower order where they matter least; on these grids it still gains 8 and more.
    assert order - 0.15 < measured < order + (1.1 if order == 3 else 0.15)


@pytest.mark.parametrize(("sampler", "order"), [(sample_dpm_solver, 3), (sample_dpmpp, 2), (sample_dpmpp, 3)])
def test_in_even_steps_of_t_the_small_end_converges_last(sampler, order):
    vp = process()
    errors = [flow_error(sampler, vp, 1 + n, order=order, skip="uniform") for n in (96, 192, 384)]
    assert errors == sorted(errors, reverse=True) and errors[0] / errors[2] > 2 ** (2 * order - 2)


def test_twenty_calls_of_a_high_order_are_worth_many_of_ddim():
    vp = process()
    ddim = flow_error(sample_ddim, vp, 200)
    for sampler, order in ((sample_dpmpp, 2), (sample_dpmpp, 3), (sample_dpm_solver, 3)):
        assert flow_error(sampler, vp, 25, order=order) < ddim


@pytest.mark.parametrize("sampler", [sample_dpm_solver, sample_dpmpp_singlestep])
@pytest.mark.parametrize("rest", [1, 2])
def test_calls_that_do_not_fill_a_step_end_in_a_lower_order(rest, sampler):
    vp = process()
    error = flow_error(sampler, vp, 31 + rest, order=3, skip="quadratic")
    assert error < 4 * flow_error(sampler, vp, 31, order=3, skip="quadratic")


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("sampler", [sample_dpm_solver, sample_dpmpp, sample_dpmpp_singlestep])
def test_order_1_on_whole_times_is_ddim(sampler, clip):
    vp, x_T = process(101), normal(2, 1, 4, 4)
    expected = sample_ddim(lambda x, t: torch.tanh(x), vp, x_T, noise=no_noise, steps=11, clip=clip)
    got = sampler(lambda x, t: torch.tanh(x), vp, x_T, noise=no_noise, steps=11, order=1, skip="uniform", clip=clip)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clip", [True, False])
def test_order_1_of_the_sde_is_ancestral_sampling_with_the_small_variance(clip):
    vp, x_T = process(101, var_type="fixedsmall"), normal(2, 1, 4, 4)
    ends = [
        sampler(
            lambda x, t: torch.tanh(x), vp, x_T, noise=Draws(x_T.shape), steps=11, skip="uniform", clip=clip, **more
        )
        for sampler, more in ((sample_ddpm_strided, {}), (sample_dpmpp_sde, {"order": 1}))
    ]
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("mean_type", ["xstart", "v"])
@pytest.mark.parametrize(("sampler", "order"), [*SOLVERS, (sample_dpmpp_sde, 2)])
def test_what_the_network_predicts_does_not_matter(sampler, order, mean_type, clip):
    ends, x_T = [], normal(2, 1, 3, 3)
    for kind in ("epsilon", mean_type):
        vp = process(100, mean_type=kind)
        net = in_terms_of(vp, lambda x, t: torch.tanh(x))
        ends.append(sampler(net, vp, x_T, noise=Draws(x_T.shape), steps=8, order=order, clip=clip))
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("sampler", "order"), [*SOLVERS, (sample_dpmpp_sde, 2)])
def test_clip_bounds_the_predicted_image_of_every_call(sampler, order):
    vp, x_T = process(100, mean_type="xstart"), normal(2, 1, 3, 3)
    options = {"steps": 8, "order": order}
    far = sampler(lambda x, t: torch.full_like(x, 5.0), vp, x_T, noise=Draws(x_T.shape), **options)
    states: dict[str, list] = {"clipped": [], "bounded": [], "free": []}
    for name, value, clip in (("clipped", 5.0, True), ("bounded", 1.0, False), ("free", 5.0, False)):
        sampler(
            lambda x, t, v=value: torch.full_like(x, v),
            vp,
            x_T,
            noise=Draws(x_T.shape),
            clip=clip,
            on_step=lambda t, x, s=states[name]: s.append(x.clone()),
            **options,
        )
    torch.testing.assert_close(torch.stack(states["clipped"]), torch.stack(states["bounded"]), rtol=1e-9, atol=1e-9)
    assert (states["free"][-1] > 3).all() and (far == 1).all()


def test_the_network_gets_real_times_in_a_precision_that_holds_them():
    vp, seen = process(1000), []

    def net(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        sample_dpmpp(net, vp, normal(2, 1, 2, 2).to(dtype), steps=5)
    assert {t.dtype for t in seen[:10]} == {torch.float32} and {t.dtype for t in seen[10:]} == {torch.float64}
    torch.testing.assert_close(seen[1].double(), seen[11], rtol=1e-6, atol=0)
    assert any(float(t[0]) % 1 for t in seen)


# ---- the SDE --------------------------------------------------------------------------------------------------------


def sde_errors(steps: int, order: int) -> tuple[float, float]:
    """Relative errors of the gain of x_T and of the variance added to it, for N(0, STD²) data.

    The exact reverse SDE has the joint law of the forward process: Cov(x_0, x_T) = √(ᾱ_T/ᾱ_0)·Var x_0, where x_0 and
    x_T are the states at the ends.
    """
    vp = process(500, beta_1=2e-4, beta_T=0.04)
    row = response(sample_dpmpp_sde, vp, gaussian_denoiser(vp, STD), steps - 1, steps=steps, order=order)
    first, last = float(vp.alphas_bar[0]), float(vp.alphas_bar[-1])
    var_first, var_last = (alpha * STD**2 + 1 - alpha for alpha in (first, last))
    image = math.sqrt(first) * STD**2 / var_first  # the predicted image per unit of the last state
    gain = image * math.sqrt(last / first) * var_first / var_last
    added = image**2 * var_first - gain**2 * var_last
    return abs(float(row[0]) / gain - 1), abs(float((row[1:] ** 2).sum()) / added - 1)


@pytest.mark.parametrize("order", [1, 2])
def test_the_sde_solver_has_its_order_in_the_variance_and_no_error_in_the_mean(order):
    (mean, variance), (_, finer) = (sde_errors(1 + n, order) for n in (100, 200))
    assert mean < 1e-12  # the predicted image is a martingale
    assert math.log2(variance / finer) == pytest.approx(order, abs=0.1)


def test_responses_are_far_from_the_limits():
    # What `response` measures is linear: a tenth of the input gives a tenth of the output.
    vp = process(100)
    x = torch.full((1, 1, 1, 1), SCALE, dtype=torch.float64)
    big, small = (
        float(sample_dpmpp(gaussian_denoiser(vp, STD), vp, scale * x, steps=9, clip=False)) for scale in (1.0, 0.1)
    )
    assert big == pytest.approx(10 * small, rel=1e-12)
