"""Heun and UniPC on the exact flow of Gaussian data, UniPC beside diffusers', and processes that end in pure noise."""

import math

import pytest
import torch

from ann2snn.config import DiffusionConfig
from ann2snn.diffusion import VP, sample_ddim
from ann2snn.diffusion.samplers import (
    sample_dpmpp,
    sample_dpmpp_singlestep,
    sample_heun,
    sample_pndm,
    sample_unipc,
    uniform_times,
    whole_times,
)
from ann2snn.diffusion.schedules import zero_terminal
from ann2snn.errors import UserError
from tests.diffusion.vp_exact import in_terms_of, no_noise, normal, oracle, process

schedulers = pytest.importorskip("diffusers.schedulers", reason="pip install -r requirements-dev.txt")

from tests.diffusion.test_diffusers import FLOAT32, net, run, scheduler  # noqa: E402
from tests.diffusion.test_solvers import flow_error  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
]


@pytest.mark.parametrize(
    ("sampler", "options", "order"),
    [(sample_heun, {}, 2), (sample_unipc, {"order": 1}, 2), (sample_unipc, {"order": 2}, 3)],
)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_convergence_order(sampler, options, order, schedule):
    vp = process(schedule=schedule)
    coarse, fine = (flow_error(sampler, vp, 1 + n, skip="logsnr", **options) for n in (192, 384))
    assert order - 0.25 < math.log2(coarse / fine) < order + 1.1


def test_an_even_number_of_calls_ends_in_a_step_of_ddim():
    vp, x_T = process(101), normal(2, 1, 4, 4)
    got = sample_heun(net, vp, x_T, steps=2, skip="uniform", clip=False)
    expected = sample_ddim(net, vp, x_T, noise=no_noise, steps=2, clip=False)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clip", [True, False])
def test_what_the_network_predicts_does_not_matter_to_heun(clip):
    x_T, ends = normal(2, 1, 4, 4), []
    for mean_type in ("epsilon", "xstart", "v"):
        vp = process(mean_type=mean_type)
        ends.append(sample_heun(in_terms_of(vp, net), vp, x_T, steps=9, clip=clip))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("mean_type", "kind"), [("epsilon", "epsilon"), ("v", "v_prediction")])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_that_of_diffusers(order, mean_type, kind):
    vp, x_T, steps = process(101, mean_type=mean_type), normal(2, 1, 4, 4), 11
    made = scheduler("UniPCMultistepScheduler", vp, solver_order=order, prediction_type=kind, final_sigmas_type="zero")
    made.set_timesteps(steps)
    times = uniform_times(101, steps)
    made.timesteps = torch.tensor(times)
    alphas_bar = vp.alphas_bar[times]
    made.sigmas = torch.cat([torch.sqrt((1 - alphas_bar) / alphas_bar), torch.zeros(1, dtype=torch.float64)])
    got = sample_unipc(net, vp, x_T, noise=no_noise, steps=steps, order=order, skip="uniform", clip=False)
    torch.testing.assert_close(got.float(), run(made, net, x_T).float(), **FLOAT32)


def test_the_corrector_pays():
    vp = process()
    for order in (1, 2):
        assert flow_error(sample_unipc, vp, 33, order=order) < flow_error(sample_dpmpp, vp, 33, order=order) / 2


# ---- trailing times, and processes that end in pure noise ---------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 25, 100])
def test_trailing_times_are_those_of_diffusers(steps):
    made = schedulers.DDIMScheduler(num_train_timesteps=100, timestep_spacing="trailing")
    made.set_timesteps(steps)
    assert whole_times(process(100), steps, "trailing") == made.timesteps.tolist()


def test_ddim_on_trailing_times():
    vp, x_T = process(100), normal(2, 1, 4, 4)
    made = scheduler("DDIMScheduler", vp, clip_sample=False, timestep_spacing="trailing")
    made.set_timesteps(10)
    got = sample_ddim(net, vp, x_T, noise=no_noise, steps=10, skip="trailing", clip=False)
    torch.testing.assert_close(got, run(made, net, x_T), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", ["linear", "quad", "const", "sigmoid", "warmup10"])
def test_rescaled_schedules_are_those_of_diffusers(schedule):
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    plain = VP(DiffusionConfig(schedule=schedule))
    vp = VP(DiffusionConfig(schedule=schedule, zero_terminal_snr=True, mean_type="v"))
    torch.testing.assert_close(vp.betas, rescale_zero_terminal_snr(plain.betas), rtol=1e-9, atol=1e-12)
    assert vp.alphas_bar[-1] == 0 and float(vp.alphas_bar[0]) == pytest.approx(float(plain.alphas_bar[0]))
    assert zero_terminal(vp.betas) is vp.betas


def test_what_ends_in_pure_noise_is_sampled_from_it():
    vp = process(100, zero_terminal_snr=True, mean_type="v")
    image = normal(1, 1, 2, 2).clamp(-0.9, 0.9)
    got = sample_ddim(oracle(vp, image), vp, normal(1, 1, 2, 2, seed=1), noise=no_noise, steps=10, skip="trailing")
    torch.testing.assert_close(got, image, rtol=0, atol=1e-9)
    for sampler in (sample_heun, sample_unipc, sample_dpmpp_singlestep, sample_pndm):
        with pytest.raises(UserError, match="ends at ᾱ = 0"):
            sampler(net, vp, image, steps=5)


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "--mean_type=epsilon"), ({"process": "cld"}, "--process=vp"), ({"diffusion_steps": 1}, "at least 2 steps")],
)
def test_schedules_that_cannot_be_rescaled_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        DiffusionConfig(zero_terminal_snr=True, **options)
