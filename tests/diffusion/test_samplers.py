"""Samplers against closed forms, with exact denoisers in place of networks."""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ann2snn.config import DiffusionConfig, SampleConfig
from ann2snn.convert import convert
from ann2snn.diffusion import ImageNoise, sample_ddim, sample_ddpm
from ann2snn.diffusion.samplers import uniform_times
from ann2snn.errors import UserError
from ann2snn.generate import sampling
from ann2snn.generate.sampling import generate, generate_all
from quant import QuantConv2d
from tests.diffusion.vp_exact import Draws, gaussian_denoiser, no_noise, normal, oracle, process
from tests.helpers import assert_equal, random_ann, random_batch

MEAN_TYPES = ("epsilon", "xstart", "xprev", "v")
mean_types = pytest.mark.parametrize("mean_type", MEAN_TYPES)


# ---- DDIM -----------------------------------------------------------------------------------------------------------


def ddim_gain(steps: int, std: float = 0.3) -> float:
    """The factor by which DDIM scales x_T, when the exact denoiser is linear."""
    vp = process()
    x = torch.full((1, 1, 1, 1), 0.01, dtype=torch.float64)
    return float(sample_ddim(gaussian_denoiser(vp, std), vp, x, noise=no_noise, steps=steps, clip=False)) / 0.01


def test_ddim_with_many_steps_maps_noise_to_the_data_distribution():
    std, last = 0.3, process().alphas_bar[-1]
    exact = std / math.sqrt(last * std**2 + 1 - last)  # the probability-flow ODE, solved by hand
    errors = [abs(ddim_gain(steps) / exact - 1) for steps in (10, 50, 250, 1000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05 and errors[-1] < 0.005
    assert 3 < errors[1] / errors[2] < 8  # first order: five times the steps, about a fifth of the error


def test_ddim_step_is_equation_12():
    # One step of two, written out for one pixel.
    vp = process(10)
    x, eps = 0.7, 0.2
    now, then = (float(a) for a in vp.alphas_bar[[9, 0]])
    x_0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
    x_1 = math.sqrt(then) * x_0 + math.sqrt(1 - then) * eps
    expected = (x_1 - math.sqrt(1 - then) * eps) / math.sqrt(then)
    seen = []
    out = sample_ddim(
        lambda x, t: torch.full_like(x, eps),
        vp,
        torch.full((1, 1, 1, 1), x, dtype=torch.float64),
        noise=no_noise,
        steps=2,
        clip=False,
        on_step=lambda step, x: seen.append((step, float(x))),
    )
    assert seen == [(9, pytest.approx(x)), (0, pytest.approx(x_1, rel=1e-12))]
    assert float(out) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("clip", [True, False])
@mean_types
def test_ddim_with_eta_1_on_all_steps_is_ancestral_sampling_with_the_small_variance(clip, mean_type):
    vp = process(50, mean_type=mean_type, var_type="fixedsmall")
    linear = gaussian_denoiser(vp, 0.5)

    def net(x, t):  # nonlinear, and the same function for every mean type
        return torch.tanh(linear(x, t)) + 0.1

    x_T, paths = normal(2, 1, 4, 4), []
    for sampler, options in ((sample_ddim, {"steps": 50, "eta": 1.0}), (sample_ddpm, {})):
        draws, states = Draws(x_T.shape), []
        end = sampler(
            net, vp, x_T, noise=draws, clip=clip, on_step=lambda step, x, s=states: s.append(x.clone()), **options
        )
        assert draws.count == 49
        paths.append(torch.stack([*states, end]))
    torch.testing.assert_close(paths[0], paths[1], rtol=1e-9, atol=1e-9)


def test_ddim_with_eta_0_draws_nothing_and_with_less_than_1_adds_the_right_variance():
    vp = process(100)
    assert_equal(
        sample_ddim(gaussian_denoiser(vp, 0.3), vp, normal(1, 1, 2, 2), noise=no_noise, steps=10),
        sample_ddim(gaussian_denoiser(vp, 0.3), vp, normal(1, 1, 2, 2), noise=no_noise, steps=10),
    )
    # x_t keeps the variance of q(x_t) for any eta when the data are N(0, 1): target + (1 − target) = 1.
    states = {}
    draws = Draws((4000, 1, 1, 1), seed=3)
    for eta in (0.5, 1.0):
        sample_ddim(
            gaussian_denoiser(vp, 1.0),
            vp,
            normal(4000, 1, 1, 1),
            noise=draws,
            steps=100,
            eta=eta,
            clip=False,
            on_step=lambda step, x, e=eta: states.update({(e, step): float(x.std())}),
        )
        assert states[eta, 0] == pytest.approx(1, abs=0.04)


# ---- ancestral ------------------------------------------------------------------------------------------------------


def test_ancestral_step_for_standard_normal_data_is_the_exact_reverse_step():
    # For N(0, I) data, q(x_{t−1} | x_t) = N(√(1−β_t)·x_t, β_t): the mean, and fixedlarge is the right variance.
    vp = process(30)
    x_T, draws, states = normal(2, 1, 3, 3), Draws((2, 1, 3, 3)), {}
    sample_ddpm(
        gaussian_denoiser(vp, 1.0), vp, x_T, noise=draws, clip=False, on_step=lambda step, x: states.update({step: x})
    )
    x, replay = x_T, Draws((2, 1, 3, 3))
    for step in range(29, 0, -1):
        torch.testing.assert_close(states[step], x, rtol=1e-10, atol=1e-10)
        x = torch.sqrt(1 - vp.betas[step]) * x + torch.sqrt(vp.betas[step]) * replay()
    assert draws.count == 29


def test_ancestral_sampling_gives_the_data_distribution():
    vp, n = process(200, beta_T=0.1), 3000
    draws = Draws((n, 1, 1, 1), seed=5)
    out = sample_ddpm(gaussian_denoiser(vp, 0.2), vp, normal(n, 1, 1, 1, seed=6), noise=draws, clip=False)
    assert float(out.std()) == pytest.approx(0.2, rel=0.1)
    assert float(out.mean()) == pytest.approx(0, abs=0.02)


def test_ancestral_sampling_takes_every_step():
    vp = process(10)
    with pytest.raises(ValueError, match="all 10 steps"):
        sample_ddpm(gaussian_denoiser(vp, 1.0), vp, normal(1, 1, 2, 2), noise=no_noise, steps=5)


@pytest.mark.parametrize("sampler", [sample_ddpm, sample_ddim])
def test_a_process_of_one_step(sampler):
    vp = process(1)
    image = normal(1, 1, 2, 2).clamp(-1, 1)
    out = sampler(oracle(vp, image), vp, normal(1, 1, 2, 2, seed=1), noise=no_noise, steps=1)
    torch.testing.assert_close(out, image)


# ---- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [True, False])
@mean_types
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (sample_ddpm, {}),
        (sample_ddim, {"steps": 1}),
        (sample_ddim, {"steps": 7}),
        (sample_ddim, {"steps": 7, "eta": 1.0}),
        (sample_ddim, {"steps": 40, "eta": 0.3}),
    ],
)
def test_an_oracle_recovers_its_image(sampler, options, mean_type, clip):
    vp = process(40, mean_type=mean_type)
    image = normal(1, 3, 4, 4).clamp(-0.9, 0.9)
    x_T = normal(2, 3, 4, 4, seed=1)
    out = sampler(oracle(vp, image), vp, x_T, noise=Draws(x_T.shape), clip=clip, **options)
    torch.testing.assert_close(out, image.expand_as(out), rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampler", [sample_ddpm, sample_ddim])
def test_clip_bounds_the_predicted_image_inside_the_chain(sampler):
    vp = process(20, mean_type="xstart")
    x_T = normal(2, 1, 3, 3)
    ends = {}
    for clip in (True, False):
        seen = []
        sampler(
            lambda x, t: torch.full_like(x, 5.0),
            vp,
            x_T,
            noise=Draws(x_T.shape),
            steps=20,
            clip=clip,
            on_step=lambda step, x, s=seen: s.append(x.clone()),
        )
        ends[clip] = seen[-1]
    assert (ends[True] < 1.5).all() and (ends[False] > 3).all()

    seen = []
    one = sampler(
        lambda x, t: torch.ones_like(x),
        vp,
        x_T,
        noise=Draws(x_T.shape),
        steps=20,
        clip=False,
        on_step=lambda step, x: seen.append(x.clone()),
    )
    torch.testing.assert_close(seen[-1], ends[True])  # a prediction of 5, clipped, is a prediction of 1
    assert_equal(one, torch.ones_like(one))


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("sampler", [sample_ddpm, sample_ddim])
def test_images_end_in_minus_one_to_one(sampler, clip):
    vp = process(20)
    out = sampler(lambda x, t: -3 * x, vp, 5 * normal(2, 1, 3, 3), noise=Draws((2, 1, 3, 3)), steps=20, clip=clip)
    assert out.abs().max() == 1


@given(steps=st.integers(1, 2000), data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_uniform_times_fall_from_the_last_time_to_zero(steps, data):
    count = data.draw(st.integers(1, steps))
    times = uniform_times(steps, count)
    assert len(times) == count and times[0] == steps - 1
    if count > 1:
        gaps = [a - b for a, b in zip(times, times[1:], strict=False)]
        assert times[-1] == 0 and min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
    assert uniform_times(steps, steps) == list(range(steps - 1, -1, -1))


def test_more_ddim_steps_than_diffusion_steps_are_refused():
    with pytest.raises(UserError, match="--sampler_steps=21"):
        SampleConfig("ddim", steps=21).check_fits(DiffusionConfig(diffusion_steps=20))
    SampleConfig("ddpm", steps=21).check_fits(DiffusionConfig(diffusion_steps=20))


# ---- image i is image i ---------------------------------------------------------------------------------------------


def test_noise_of_an_image_depends_on_seed_and_index_alone():
    def draws(seed: int, indices: list[int], times: int = 3) -> torch.Tensor:
        noise = ImageNoise(seed, indices, (3, 4, 4), "cpu")
        return torch.stack([noise() for _ in range(times)], dim=1)  # [N, times, …]

    whole = draws(7, [0, 1, 2, 3])
    assert_equal(draws(7, [3, 1])[0], whole[3])
    assert_equal(draws(7, [3, 1])[1], whole[1])
    assert_equal(draws(7, [2], times=1), whole[2:3, :1])
    values = torch.cat([whole.flatten(0, 1), draws(8, [0, 1, 2, 3]).flatten(0, 1)])
    assert len({tuple(row.flatten().tolist()) for row in values}) == len(values)  # no two draws are alike


def test_noise_is_standard_normal_in_the_dtype_asked_for():
    noise = ImageNoise(0, range(50), (3, 16, 16), "cpu", torch.float64)()
    assert noise.dtype == torch.float64
    assert float(noise.mean()) == pytest.approx(0, abs=0.02) and float(noise.std()) == pytest.approx(1, abs=0.02)
    assert_equal(noise.float(), ImageNoise(0, range(50), (3, 16, 16), "cpu")())  # the same numbers, whatever the dtype
    correlation = torch.corrcoef(noise.flatten(1))
    assert (correlation - torch.eye(50)).abs().max() < 0.2


@pytest.mark.parametrize("kind", ["ann", "layer_sync", "stream"])
@pytest.mark.parametrize("config", [SampleConfig(seed=4), SampleConfig("ddim", steps=5, eta=0.5, seed=4)])
def test_an_image_is_the_same_in_any_batch_and_order(kind, config):
    net = random_ann(diffusion_steps=10)
    net = net if kind == "ann" else convert(net, schedule=kind)
    whole = generate(net, config, range(4))
    assert whole.dtype == torch.uint8 and whole.shape == (4, 3, 4, 4)
    assert len(whole.unique()) > 10  # not all black and white
    assert_equal(generate(net, config, [2, 0]), whole[[2, 0]])
    assert_equal(torch.cat([generate(net, config, [i]) for i in range(4)]), whole)
    assert_equal(generate_all(net, config, 4, batch_size=3), whole)
    other = SampleConfig(config.sampler, config.steps, config.eta, seed=5)
    assert not torch.equal(generate(net, other, range(4)), whole)


def test_layer_sync_draws_the_anns_images():
    ann = random_ann(diffusion_steps=10)
    config = SampleConfig("ddim", steps=5)
    assert_equal(generate(convert(ann), config, range(3)), generate(ann, config, range(3)))


def test_weights_are_quantized_once_for_all_calls_of_a_sampler(monkeypatch):
    ann = random_ann(bits=2, weight_bits=4)
    config = SampleConfig(sampler="ddim", steps=5, seed=3)
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "quantized_once", lambda net: contextlib.nullcontext())
        expected = generate(ann, config, range(2))
    layers = [module for module in ann.modules() if getattr(module, "bits", 32) == 4 and hasattr(module, "wgt_alpha")]
    calls = []
    quantize = QuantConv2d._quantize
    monkeypatch.setattr(QuantConv2d, "_quantize", lambda self, w: (calls.append(self), quantize(self, w))[1])
    assert_equal(generate(ann, config, range(2)), expected)
    assert 0 < len(calls) == len(set(calls)) and set(calls) <= set(ann.modules()) and len(layers) > 4
    calls.clear()
    snn = convert(ann, schedule="stream", settle_steps="auto")
    snn.set_spike_chunk(1)
    with torch.no_grad():
        snn(*random_batch(snn))
    assert 0 < len(calls) == len(set(calls))
