"""PNDM beside diffusers', on the exact flow of Gaussian data, and what its weights are exact for."""

import math

import pytest
import torch

from ann2snn.diffusion.predict import x0_from_eps
from ann2snn.diffusion.samplers import SAMPLERS, sample_ddim, sample_heun, sample_pndm
from ann2snn.diffusion.samplers.pndm import WEIGHTS
from tests.diffusion.test_solvers import flow_error
from tests.diffusion.vp_exact import in_terms_of, no_noise, normal, process


def net(x, t):
    """Nonlinear in x, and different at every time."""
    return torch.tanh(x + 1e-3 * t.to(x).view(-1, 1, 1, 1)) + 0.1


@pytest.mark.parametrize("times", [3, 4, 11])
def test_pndm_is_that_of_diffusers_without_runge_kutta(times):
    """Theirs leaves the state at t = 0 and does nothing with its call there, which here makes the image."""
    schedulers = pytest.importorskip("diffusers.schedulers", reason="pip install -r requirements-dev.txt")
    vp, x_T, stride = process(10 * (times - 1) + 1), normal(2, 1, 4, 4), 10
    made = schedulers.PNDMScheduler(num_train_timesteps=vp.diffusion_steps, skip_prk_steps=True)
    made.alphas_cumprod, made.final_alpha_cumprod = vp.alphas_bar, vp.alphas_bar[0]
    made.set_timesteps(vp.diffusion_steps // stride)
    first, *later = range(vp.diffusion_steps - 1, -1, -stride)
    called = torch.tensor([first, later[0], *later])
    assert called.tolist() == SAMPLERS["pndm"].times(vp, steps=times + 1)
    x = x_T
    for t in called:
        x = made.step(net(x, t.expand(len(x))), t, x).prev_sample
    end = torch.zeros(len(x), dtype=torch.long)
    expected = x0_from_eps(vp, net(x, end), x, end).clamp(-1, 1)
    got = sample_pndm(net, vp, x_T, noise=no_noise, steps=times + 1, clip=False)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("order", WEIGHTS)
def test_the_weights_are_exact_for_polynomials_of_evenly_spaced_times(order):
    for power in range(order):
        mean = sum(weight * (-place) ** power for place, weight in enumerate(WEIGHTS[order]))
        assert mean == pytest.approx(1 / (power + 1), abs=1e-12)  # of time^power from 0 to 1


@pytest.mark.parametrize("schedule", ["linear", "quad"])
def test_convergence_order(schedule):
    vp = process(schedule=schedule)
    coarse, fine = (flow_error(sample_pndm, vp, 2 + n) for n in (400, 800))
    assert math.log2(coarse / fine) == pytest.approx(2, abs=0.15)


def test_twenty_six_calls_are_worth_many_of_ddim_and_of_heun_on_the_same_spacing():
    vp = process()
    error = flow_error(sample_pndm, vp, 26)
    assert error < flow_error(sample_ddim, vp, 200) / 2
    assert error < flow_error(sample_heun, vp, 51, skip="uniform") / 2


@pytest.mark.parametrize("clip", [True, False])
def test_what_the_network_predicts_does_not_matter(clip):
    x_T, ends = normal(2, 1, 3, 3), []
    for mean_type in ("epsilon", "xstart", "v"):
        vp = process(100, mean_type=mean_type)
        ends.append(sample_pndm(in_terms_of(vp, net), vp, x_T, steps=8, clip=clip))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-8, atol=1e-8)


def test_clip_bounds_the_image_that_every_call_implies():
    vp, x_T, ends = process(100, mean_type="xstart"), normal(2, 1, 3, 3), {}
    for value, clip in ((5.0, True), (1.0, False), (5.0, False)):
        states = []
        sample_pndm(
            lambda x, t, value=value: torch.full_like(x, value),
            *(vp, x_T),
            steps=8,
            clip=clip,
            on_step=lambda t, x, states=states: states.append(x),
        )
        ends[value, clip] = torch.stack(states)
    torch.testing.assert_close(ends[5.0, True], ends[1.0, False], rtol=1e-9, atol=1e-9)
    assert (ends[5.0, False][-1] > 3).all()
