"""PNDM beside diffusers', on the exact flow of Gaussian data, and what its weights are exact for."""

import math

import pytest
import torch

import ann2snn
from ann2snn.config import DiffusionConfig, SampleConfig
from ann2snn.diffusion import VP
from ann2snn.diffusion.predict import predicted_eps, x0_from_eps
from ann2snn.diffusion.process import run_sampler
from ann2snn.diffusion.samplers import SAMPLERS, sample_ddim, sample_heun, sample_pndm
from ann2snn.diffusion.samplers.pndm import WEIGHTS
from ann2snn.diffusion.samplers.solver import ddim_step, node
from tests.diffusion.test_solvers import flow_error
from tests.diffusion.vp_exact import in_terms_of, no_noise, normal, process


def net(x, t):
    """Nonlinear in x, and different at every time."""
    return torch.tanh(x + 1e-3 * t.to(x).view(-1, 1, 1, 1)) + 0.1


def pndm_of_diffusers(net, vp, x, times):
    """Theirs leaves the state at t = 0 and does nothing with its call there, which here makes the image."""
    schedulers = pytest.importorskip("diffusers.schedulers", reason="pip install -r requirements-dev.txt")
    stride = (vp.diffusion_steps - 1) // (times - 1)
    made = schedulers.PNDMScheduler(num_train_timesteps=vp.diffusion_steps, skip_prk_steps=True)
    made.alphas_cumprod, made.final_alpha_cumprod = vp.alphas_bar, vp.alphas_bar[0]
    made.set_timesteps(vp.diffusion_steps // stride)
    first, *later = range(vp.diffusion_steps - 1, -1, -stride)
    called = torch.tensor([first, later[0], *later])
    assert called.tolist() == SAMPLERS["pndm"].times(vp, steps=times + 1)
    for t in called:
        x = made.step(net(x, t.expand(len(x))), t, x).prev_sample
    end = torch.zeros(len(x), dtype=torch.long)
    return x0_from_eps(vp, net(x, end), x, end).clamp(-1, 1)


@pytest.mark.parametrize("times", [3, 4, 11])
def test_pndm_is_that_of_diffusers_without_runge_kutta(times):
    vp, x_T = process(10 * (times - 1) + 1), normal(2, 1, 4, 4)
    got = sample_pndm(net, vp, x_T, noise=no_noise, steps=times + 1, clip=False)
    torch.testing.assert_close(got, pndm_of_diffusers(net, vp, x_T, times), rtol=1e-8, atol=1e-8)


def test_it_is_on_the_network_that_ships_given_the_noise_that_v_implies():
    ann = ann2snn.pretrained("fashion-mnist-32-4bit").double()
    vp, x_T = VP(ann.diffusion), normal(1, 1, 32, 32)

    def eps(x, t):
        return predicted_eps(vp, ann(x, t), x, t)

    with torch.no_grad():
        got, expected = sample_pndm(ann, vp, x_T, steps=11, clip=False), pndm_of_diffusers(eps, vp, x_T, 10)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_the_last_steps_may_combine_fewer_predictions():
    """Of three, two and one; those before them are the same."""
    vp, states = process(100), {False: [], True: []}
    for lower, seen in states.items():
        hook = lambda t, x, seen=seen: seen.append((t, x))  # noqa: E731
        sample_pndm(net, vp, normal(2, 1, 4, 4), steps=10, clip=False, on_step=hook, lower_order_final=lower)
    times, lowered = [t for t, _ in states[True]], [x for _, x in states[True]]
    assert all(torch.equal(x, state) for x, (_, state) in zip(lowered[:7], states[False][:7], strict=True))
    slopes = [net(x, torch.full((2,), t)) for t, x in states[True]]
    for last, end in enumerate((7, 8, 9)):
        weights = WEIGHTS[3 - last]
        eps = sum(weight * slopes[end - 1 - back] for back, weight in enumerate(weights))
        expected = ddim_step(lowered[end - 1], eps, node(vp, times[end - 1]), node(vp, times[end]))
        torch.testing.assert_close(lowered[end], expected, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(lowered[end], states[False][end][1], atol=1e-6)


def test_the_setting_reaches_the_sampler():
    x_T = normal(2, 1, 4, 4)
    images = [
        run_sampler(net, DiffusionConfig(diffusion_steps=100), 4, SampleConfig("pndm", 8, **way), lambda: x_T)
        for way in ({}, {"lower_order_final": True})
    ]
    assert not torch.equal(*images)


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
            vp,
            x_T,
            steps=8,
            clip=clip,
            on_step=lambda t, x, states=states: states.append(x),
        )
        ends[value, clip] = torch.stack(states)
    torch.testing.assert_close(ends[5.0, True], ends[1.0, False], rtol=1e-9, atol=1e-9)
    assert (ends[5.0, False][-1] > 3).all()
