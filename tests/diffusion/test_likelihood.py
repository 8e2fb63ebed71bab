"""Bits per dimension against integrals, exact conditionals and the entropy of a discretized Gaussian."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from ann2snn.config import MEAN_TYPES
from ann2snn.diffusion import squared_error, training_loss, variational_bound
from ann2snn.diffusion.likelihood import bound_term, discretized_log_likelihood, normal_kl, prior_term
from ann2snn.errors import UserError
from tests.diffusion.vp_exact import Draws, gaussian_denoiser, normal, oracle, process

LEVELS = torch.arange(256, dtype=torch.float64) * 2 / 255 - 1


def test_kl_of_gaussians():
    mean, log_var, other, other_log_var = normal(4, 50)
    p = torch.distributions.Normal(mean, torch.exp(log_var / 2))
    q = torch.distributions.Normal(other, torch.exp(other_log_var / 2))
    expected = torch.distributions.kl_divergence(p, q)
    torch.testing.assert_close(normal_kl(mean, log_var, other, other_log_var), expected)


@pytest.mark.parametrize("mean", [-1.2, 0.0, 0.30001, 0.9])
@pytest.mark.parametrize("std", [0.003, 0.05, 2.0])
def test_level_probabilities_are_integrals_and_sum_to_one(mean, std):
    centre, log_var = torch.full_like(LEVELS, mean), torch.full_like(LEVELS, 2 * math.log(std))
    logs = discretized_log_likelihood(LEVELS, centre, log_var)
    assert float(logs.exp().sum()) == pytest.approx(1, abs=1e-12)
    density = norm(mean, std).pdf
    for k in range(128, 255, 18):
        low, high = float(LEVELS[k]) - 1 / 255, float(LEVELS[k]) + 1 / 255
        assert math.exp(logs[k]) == pytest.approx(quad(density, low, high)[0], rel=1e-9, abs=1e-13)


def test_levels_far_from_the_mean_keep_finite_likelihoods_and_gradients():
    for dtype in (torch.float32, torch.float64):
        mean = torch.tensor([-30.0, -1.0, 0.2, 1.0, 30.0], dtype=dtype, requires_grad=True)
        for level in (0, 1, 128, 254, 255):
            x = LEVELS[level].to(dtype).expand_as(mean)
            logs = discretized_log_likelihood(x, mean, torch.full_like(mean, -9.8))
            (gradient,) = torch.autograd.grad(logs.sum(), mean)
            assert torch.isfinite(logs).all() and torch.isfinite(gradient).all() and (logs <= 0).all()
    # Mills' ratio: far out, log p ≈ −z²/2 − log z − ½log 2π.
    log_p = discretized_log_likelihood(
        LEVELS[:1] * 0 + 0.5, torch.tensor([-0.5]).double(), torch.tensor([-9.8]).double()
    )
    z = (1 - 1 / 255) * math.exp(4.9)
    assert float(log_p) == pytest.approx(-(z**2) / 2 - math.log(z) - 0.5 * math.log(2 * math.pi), rel=1e-4)


@pytest.mark.parametrize("mean_type", MEAN_TYPES)
def test_a_perfect_network_pays_nothing_but_the_last_step(mean_type):
    vp = process(mean_type=mean_type, var_type="fixedsmall")
    x_0, t = normal(4, 3, 4, 4).clamp(-0.8, 0.8), torch.tensor([0, 1, 500, 999])
    bits = bound_term(oracle(vp, x_0), vp, x_0, t, normal(4, 3, 4, 4, seed=1))
    assert bits.shape == (4,) and bits[1:].abs().max() < 1e-8
    # At t = 0 the mean is the image, and what is left is the width of a level against σ = √β̃_1.
    z = 1 / 255 / math.sqrt(float(vp.posterior_var[1]))
    assert float(bits[0]) == pytest.approx(-math.log2(2 * norm.cdf(z) - 1), rel=1e-9) == pytest.approx(1.3, abs=0.01)


def test_the_large_variance_costs_its_own_divergence():
    vp = process(100)
    x_0, t = normal(2, 1, 4, 4).clamp(-1, 1), torch.tensor([3, 80])
    ratio = (vp.posterior_var / vp.betas)[t]
    expected = 0.5 * (ratio - 1 - torch.log(ratio)) / math.log(2)
    torch.testing.assert_close(bound_term(oracle(vp, x_0), vp, x_0, t, normal(2, 1, 4, 4)), expected)


def test_a_term_is_the_divergence_of_the_exact_conditionals():
    # For N(0, s²) data, x_0 given x_t has the variance s²(1−ᾱ)/v with v = ᾱs² + 1 − ᾱ.
    vp, std, n = process(50, var_type="fixedsmall"), 0.5, 40_000
    x_0 = std * normal(1, 1, 200, n // 200)
    for step in (1, 20, 49):
        alpha_bar, beta = float(vp.alphas_bar[step]), float(vp.posterior_var[step])
        spread = std**2 * (1 - alpha_bar) / (alpha_bar * std**2 + 1 - alpha_bar)
        expected = float(vp.posterior_mean_coef1[step]) ** 2 * spread / (2 * beta) / math.log(2)
        got = bound_term(gaussian_denoiser(vp, std), vp, x_0, torch.tensor([step]), normal(*x_0.shape, seed=step))
        assert float(got) == pytest.approx(expected, rel=0.04)  # five standard errors


def test_prior_term():
    x_0 = normal(3, 1, 4, 4).clamp(-1, 1)
    vp = process(100)
    last = float(vp.alphas_bar[-1])
    expected = 0.5 * (last * (x_0**2).mean(dim=(1, 2, 3)) - last - math.log(1 - last)) / math.log(2)
    torch.testing.assert_close(prior_term(vp, x_0), expected)
    assert (prior_term(process(100, schedule="jsd", mean_type="v"), x_0) == 0).all()


def test_the_bound_is_just_above_the_entropy_of_discretized_gaussian_data():
    std, n = 0.25, 20_000
    edges = np.concatenate([[-np.inf], LEVELS.numpy()[:-1] + 1 / 255, [np.inf]])
    p = np.diff(norm(0, std).cdf(edges))
    entropy = -np.sum(p * np.log2(np.maximum(p, 1e-300)))
    rng = np.random.default_rng(0)
    x_0 = LEVELS[torch.from_numpy(rng.choice(256, n, p=p / p.sum()))].view(1, 1, 100, n // 100)
    vp = process()  # the large variance is nearly optimal for data much wider than the noise of the first steps
    bound = variational_bound(gaussian_denoiser(vp, std), vp, x_0, Draws(x_0.shape))
    assert bound.terms.shape == (1, 1000) and bound.prior.shape == (1,)
    torch.testing.assert_close(bound.total, bound.prior + bound.terms.sum(dim=1))
    assert entropy < float(bound.total) < entropy + 0.2
    assert float(bound.total) == pytest.approx(expected_bound(vp, std), abs=0.03)  # five standard errors


def expected_bound(vp, std: float) -> float:
    """The bound's mean for N(0, std²) data, by one integral and closed forms."""
    alpha_bar = vp.alphas_bar
    spread = std**2 * (1 - alpha_bar) / (alpha_bar * std**2 + 1 - alpha_bar)  # of x_0 given x_t
    large, small = vp.betas[1:], vp.posterior_var[1:]
    kl = 0.5 * (torch.log(large / small) - 1 + (small + vp.posterior_mean_coef1[1:] ** 2 * spread[1:]) / large)
    error, sigma, half = norm(0, math.sqrt(float(spread[0]))), math.sqrt(float(small[0])), 1 / 255
    first = quad(
        lambda e: -error.pdf(e) * math.log(norm.cdf((e + half) / sigma) - norm.cdf((e - half) / sigma)), -0.05, 0.05
    )[0]
    last = float(alpha_bar[-1])
    prior = 0.5 * (last * std**2 - last - math.log(1 - last))
    return (float(kl.sum()) + first + prior) / math.log(2)


def test_loss_types():
    vp, x_0, t = process(20), LEVELS[torch.arange(18) * 14].view(2, 1, 3, 3), torch.tensor([0, 11])
    noise = normal(2, 1, 3, 3)
    net = torch.nn.Conv2d(1, 1, 3, padding=1).double()
    call = lambda x, t: net(x)  # noqa: E731
    mse = training_loss(call, vp, x_0, t, noise)
    torch.testing.assert_close(mse, squared_error(call, vp, x_0, t, noise).mean(dim=(1, 2, 3)))
    kl = training_loss(call, vp, x_0, t, noise, "kl")
    torch.testing.assert_close(kl, bound_term(call, vp, x_0, t, noise))
    kl.sum().backward()
    assert torch.isfinite(net.weight.grad).all() and net.weight.grad.abs().min() > 0
    with pytest.raises(UserError, match="--loss_type=l1"):
        training_loss(call, vp, x_0, t, noise, "l1")
