"""Variances that the network tells: the loss against scipy and closed forms, the samplers against diffusers."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from ann2snn.config import SAMPLERS, DiffusionConfig, SampleConfig, TrainConfig
from ann2snn.diffusion import sample_ddpm, squared_error, training_loss
from ann2snn.diffusion.likelihood import bound_term
from ann2snn.diffusion.loss_weights import check_loss_weight
from ann2snn.diffusion.process import check_sampling, run_sampler
from ann2snn.diffusion.samplers import sample_ddpm_strided, uniform_times
from ann2snn.errors import UserError
from tests.diffusion.vp_exact import Draws, gaussian_denoiser, in_terms_of, normal, process

LEVELS = torch.arange(256, dtype=torch.float64) * 2 / 255 - 1
T = torch.tensor([0, 1, 17, 39])


def telling(net, v):
    """`net`, which also tells v: a function of x, t, or one number."""

    def told(x, t):
        share = v(x, t) if callable(v) else torch.full_like(x, v)
        return torch.cat([net(x, t), share], dim=1)

    return told


def wavy(x, t):
    return torch.cos(3 * x + t.to(x).view(-1, 1, 1, 1))


def learned(steps: int = 40, **options):
    return process(steps, var_type="learned_range", **options)


def batch():
    x_0 = LEVELS[torch.randint(256, (4, 2, 3, 3), generator=torch.Generator().manual_seed(1))]
    return x_0, T, normal(4, 2, 3, 3, seed=2)


# ---- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean_type", ["epsilon", "xprev", "v"])
def test_the_ends_of_the_range_are_the_two_fixed_variances(mean_type):
    call = batch()
    small, large = (process(40, mean_type=mean_type, var_type=name) for name in ("fixedsmall", "fixedlarge"))
    vp, net = learned(mean_type=mean_type), in_terms_of(small, lambda x, t: torch.tanh(x))
    torch.testing.assert_close(bound_term(telling(net, -1.0), vp, *call), bound_term(net, small, *call))
    # At t = 0 fixedlarge is β̃ as well, where the upper end of the range is β.
    upper, fixed = bound_term(telling(net, 1.0), vp, *call), bound_term(net, large, *call)
    torch.testing.assert_close(upper[1:], fixed[1:])
    assert abs(float(upper[0] / fixed[0]) - 1) > 1e-3


def by_hand(x_0, noise, step: int, eps_hat, v) -> np.ndarray:
    """A term of the bound, bits per element: the KL of two Gaussians, or of a level against scipy's probability."""
    betas = np.linspace(1e-4, 0.02, 40)
    bar = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], bar[:-1]])
    x_t = np.sqrt(bar[step]) * x_0 + np.sqrt(1 - bar[step]) * noise
    small = betas * (1 - before) / (1 - bar)
    small[0] = small[1]
    sigma = np.exp(0.5 * ((v + 1) / 2 * np.log(betas[step]) + (1 - v) / 2 * np.log(small[step])))
    # DDPM's eq. 11 for the model, its eq. 7 for the data.
    mean = (x_t - betas[step] / np.sqrt(1 - bar[step]) * eps_hat) / np.sqrt(1 - betas[step])
    if step == 0:
        low = np.where(x_0 < -0.999, -np.inf, x_0 - 1 / 255)
        high = np.where(x_0 > 0.999, np.inf, x_0 + 1 / 255)
        p, q = (
            norm.cdf(high, mean, sigma) - norm.cdf(low, mean, sigma),
            norm.sf(low, mean, sigma) - norm.sf(high, mean, sigma),
        )
        return -np.log2(np.maximum(p, q))
    true = np.sqrt(before[step]) * betas[step] * x_0 + np.sqrt(1 - betas[step]) * (1 - before[step]) * x_t
    true, ratio = true / (1 - bar[step]), small[step] / sigma**2
    return 0.5 * (ratio - 1 - np.log(ratio) + (true - mean) ** 2 / sigma**2) / math.log(2)


def test_the_hybrid_loss_is_the_sum_of_both_computed_by_hand():
    x_0, t, noise = batch()
    vp, net = learned(), lambda x, t: 0.9 * torch.tanh(x)
    got = training_loss(telling(net, wavy), vp, x_0, t, noise)
    for i, step in enumerate(t.tolist()):
        bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 40))[step]
        image, eps = x_0[i].numpy(), noise[i].numpy()
        x_t = np.sqrt(bar) * image + np.sqrt(1 - bar) * eps
        eps_hat, v = 0.9 * np.tanh(x_t), np.cos(3 * x_t + step)
        bits = by_hand(image, eps, step, eps_hat, v).mean()
        assert float(got[i]) == pytest.approx(((eps - eps_hat) ** 2).mean() + 0.001 * 40 * bits, rel=1e-9)


def test_the_bound_teaches_the_variance_and_not_the_mean():
    x_0, t, noise = batch()
    scale, shift = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.7, 0.1))
    net = lambda x, t: torch.cat([scale * x, shift * torch.ones_like(x)], dim=1)  # noqa: E731
    gradient = torch.autograd.grad(training_loss(net, learned(), x_0, t, noise).sum(), [scale, shift])
    simple = torch.autograd.grad(squared_error(net, learned(), x_0, t, noise).flatten(1).mean(1).sum(), [scale])
    torch.testing.assert_close(gradient[0], simple[0], rtol=1e-12, atol=0)
    bound = 0.001 * 40 * bound_term(net, learned(), x_0, t, noise).sum()
    torch.testing.assert_close(gradient[1], torch.autograd.grad(bound, [shift])[0], rtol=1e-12, atol=0)
    both = torch.autograd.grad(training_loss(net, learned(), x_0, t, noise, "kl").sum(), [scale, shift])
    assert abs(float(both[0] - gradient[0])) > 1e-3 < abs(float(both[1]))


def test_the_bound_is_least_at_the_variance_of_the_exact_reverse_step():
    # For N(0, s²) data x_{t−1} given x_t has the variance β̃ + c²·Var(x_0 | x_t).
    vp, std, step = learned(), 0.3, 20
    bar, small, large = (float(table[step]) for table in (vp.alphas_bar, vp.posterior_var, vp.betas))
    exact = small + float(vp.posterior_mean_coef1[step]) ** 2 * std**2 * (1 - bar) / (bar * std**2 + 1 - bar)
    v = torch.tensor(2 * math.log(exact / small) / math.log(large / small) - 1, dtype=torch.float64, requires_grad=True)
    assert -1 < float(v.detach()) < 1
    x_0 = std * normal(1, 1, 200, 200)
    net = telling(gaussian_denoiser(vp, std), lambda x, t: v.expand_as(x))
    bound = bound_term(net, vp, x_0, torch.tensor([step]), normal(*x_0.shape, seed=3)).sum()
    (slope,) = torch.autograd.grad(bound, [v], create_graph=True)
    (bend,) = torch.autograd.grad(slope, [v])
    assert (
        float(bend) > 0 and abs(float((slope / bend).detach())) < 0.1
    )  # how far off the minimum is: five standard errors


# ---- samplers -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*")
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [12, 60])
@pytest.mark.parametrize(("mean_type", "kind"), [("epsilon", "epsilon"), ("xstart", "sample"), ("v", "v_prediction")])
def test_ddpm_on_all_and_on_some_steps(mean_type, kind, steps, clip):
    schedulers = pytest.importorskip("diffusers.schedulers", reason="pip install -r requirements-dev.txt")
    vp, x_T = learned(60, mean_type=mean_type), normal(2, 1, 4, 4)
    net = telling(lambda x, t: torch.tanh(x + 1e-3 * t.to(x).view(-1, 1, 1, 1)) + 0.1, wavy)
    made = schedulers.DDPMScheduler(60, variance_type="learned_range", clip_sample=clip, prediction_type=kind)
    made.betas, made.alphas, made.alphas_cumprod = vp.betas, 1 - vp.betas, vp.alphas_bar  # theirs are float32
    made.set_timesteps(timesteps=uniform_times(60, steps))
    x, generator = x_T, torch.Generator().manual_seed(5)
    for t in made.timesteps:
        x = made.step(net(x, t.expand(len(x))), t, x, generator=generator).prev_sample
    got = sample_ddpm_strided(net, vp, x_T, noise=Draws(x_T.shape, seed=5), steps=steps, clip=clip)
    torch.testing.assert_close(got, x.clamp(-1, 1), rtol=1e-8, atol=1e-8)
    if steps == 60:
        got = sample_ddpm(net, vp, x_T, noise=Draws(x_T.shape, seed=5), clip=clip)
        torch.testing.assert_close(got, x.clamp(-1, 1), rtol=1e-8, atol=1e-8)


def test_a_predicted_mean_and_times_that_repeat():
    vp, x_T = learned(mean_type="xprev"), normal(2, 1, 4, 4)
    net = telling(lambda x, t: 0.97 * x, 3.0)  # v is not limited
    for clip in (True, False):
        got = sample_ddpm(net, vp, x_T, noise=Draws(x_T.shape), clip=clip)
        again = sample_ddpm_strided(net, vp, x_T, noise=Draws(x_T.shape), steps=40, clip=clip)
        torch.testing.assert_close(got, again, rtol=1e-8, atol=1e-8)
    got = sample_ddpm_strided(net, vp, x_T, noise=Draws(x_T.shape), steps=40, skip="ddpm_torch_quadratic")
    assert torch.isfinite(got).all()


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"ddpm", "ddpm_strided", "fsddim"}))
def test_other_samplers_go_by_the_prediction_alone(name):
    net, x = lambda x, t: 0.9 * torch.tanh(x), normal(2, 1, 4, 4)
    sample, statistics = SampleConfig(name, steps=6), torch.ones(40)
    ends = []
    for var_type, called in (("fixedlarge", net), ("learned_range", telling(net, wavy))):
        config = DiffusionConfig(diffusion_steps=40, var_type=var_type)
        check_sampling(config, 4, sample, statistics)
        ends.append(run_sampler(called, config, 4, sample, Draws(x.shape), statistics))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_a_fixed_variance_can_be_asked_of_a_network_that_tells_one():
    net, x_T = lambda x, t: 0.9 * torch.tanh(x), normal(2, 1, 4, 4)
    for var_type in ("fixedlarge", "fixedsmall"):
        vp = process(40, var_type=var_type)
        for sampler, how in ((sample_ddpm, {}), (sample_ddpm_strided, {"steps": 9})):
            ends = [sampler(one, vp, x_T, noise=Draws(x_T.shape), **how) for one in (net, telling(net, wavy))]
            torch.testing.assert_close(*ends, rtol=0, atol=0)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused():
    x = normal(2, 1, 4, 4)
    for sampler, how in ((sample_ddpm, {}), (sample_ddpm_strided, {"steps": 9})):
        with pytest.raises(UserError, match="not trained to tell its variance"):
            sampler(lambda x, t: x, learned(), x, noise=Draws(x.shape), **how)
        with pytest.raises(UserError, match="answers 3 channels to 1"):
            sampler(lambda x, t: x.expand(-1, 3, -1, -1), learned(), x, noise=Draws(x.shape), **how)
    with pytest.raises(UserError, match="not trained to tell its variance"):
        training_loss(lambda x, t: x, learned(), *batch())
    for options in ({"process": "cld"}, {"process": "blur"}, {"autoencoder": "0" * 16, "decoded_channels": 1}):
        with pytest.raises(UserError, match="--var_type=learned_range"):
            DiffusionConfig(var_type="learned_range", **options)
    assert TrainConfig(loss_weight="p2")
    with pytest.raises(UserError, match="--loss_weight=p2: not with --var_type=learned_range"):
        check_loss_weight(DiffusionConfig(var_type="learned_range"), "p2")
