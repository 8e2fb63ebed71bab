"""The process, what is predicted, and the losses, against formulas of their own."""

import pytest
import torch

from ann2snn.config import DiffusionConfig
from ann2snn.diffusion import VP, squared_error
from ann2snn.diffusion.predict import eps_from_x0, predicted_x0, training_target, x0_from_eps
from ann2snn.errors import UserError

STEPS = 40
T = torch.tensor([0, 1, 7, 39])


def process(**options) -> VP:
    return VP(DiffusionConfig(diffusion_steps=STEPS, **options))


@pytest.fixture
def images():
    """x_0, x_t and the noise between them, float64."""
    torch.manual_seed(0)
    x_0, noise = torch.rand(4, 3, 2, 2, dtype=torch.float64) * 2 - 1, torch.randn(4, 3, 2, 2, dtype=torch.float64)
    return x_0, process().diffuse(x_0, T, noise), noise


def test_diffusing_step_by_step_is_diffusing_at_once():
    # Composing x_t = √(1−β)·x_{t−1} + √β·z: the means multiply, the variances follow v ← (1−β)·v + β.
    vp, mean, variance = process(), 1.0, 0.0
    for step, beta in enumerate(vp.betas.tolist()):
        mean, variance = mean * (1 - beta) ** 0.5, (1 - beta) * variance + beta
        assert float(vp.alphas_bar[step]) ** 0.5 == pytest.approx(mean, rel=1e-12)
        assert float(1 - vp.alphas_bar[step]) == pytest.approx(variance, rel=1e-12)


def test_betas_run_linearly_from_beta_1_to_beta_t():
    vp = process(beta_1=0.01, beta_T=0.3)
    assert vp.betas[0] == 0.01 and vp.betas[-1] == 0.3
    torch.testing.assert_close(torch.diff(vp.betas), torch.full((STEPS - 1,), 0.29 / (STEPS - 1), dtype=torch.float64))


def test_posterior_is_bayes_rule():
    # Precision and mean of a product of two Gaussians: x_{t−1} given x_0, and x_t given x_{t−1}.
    vp = process()
    for t in range(1, STEPS):
        prior_mean, prior_var = vp.alphas_bar[t - 1] ** 0.5, 1 - vp.alphas_bar[t - 1]
        step, noise = (1 - vp.betas[t]) ** 0.5, vp.betas[t]
        precision = 1 / prior_var + step**2 / noise
        torch.testing.assert_close(vp.posterior_var[t], 1 / precision)
        torch.testing.assert_close(vp.posterior_mean_coef1[t], prior_mean / prior_var / precision)
        torch.testing.assert_close(vp.posterior_mean_coef2[t], step / noise / precision)
    assert vp.posterior_var[0] == 0
    assert (vp.posterior_mean_coef1[0], vp.posterior_mean_coef2[0]) == (pytest.approx(1), 0)


def test_log_variances_of_both_types():
    small, large = process(var_type="fixedsmall"), process(var_type="fixedlarge")
    torch.testing.assert_close(small.model_log_var()[1:], torch.log(small.posterior_var[1:]))
    torch.testing.assert_close(large.model_log_var()[1:], torch.log(large.betas[1:]))
    assert small.model_log_var()[0] == large.model_log_var()[0] == small.model_log_var()[1]
    assert torch.isfinite(VP(DiffusionConfig(diffusion_steps=1)).model_log_var()).all()


def test_noise_and_image_imply_each_other(images):
    x_0, x_t, noise = images
    vp = process()
    torch.testing.assert_close(x0_from_eps(vp, noise, x_t, T), x_0, rtol=0, atol=1e-10)
    torch.testing.assert_close(eps_from_x0(vp, x_0, x_t, T), noise, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mean_type", ["epsilon", "xstart", "xprev", "v"])
def test_a_perfect_output_implies_the_image_and_has_no_loss(mean_type, images):
    x_0, x_t, noise = images
    vp = process(mean_type=mean_type)
    target = training_target(vp, x_0, x_t, T, noise)
    torch.testing.assert_close(predicted_x0(vp, target, x_t, T), x_0, rtol=0, atol=1e-9)
    loss = squared_error(lambda x, t: target, vp, x_0, T, noise)
    assert loss.shape == x_0.shape and loss.max() == 0
    torch.testing.assert_close(squared_error(lambda x, t: target + 3, vp, x_0, T, noise), torch.full_like(x_0, 9))


def test_training_targets(images):
    x_0, x_t, noise = images
    assert training_target(process(mean_type="epsilon"), x_0, x_t, T, noise) is noise
    assert training_target(process(mean_type="xstart"), x_0, x_t, T, noise) is x_0
    vp = process(mean_type="xprev")
    c1, c2 = (c[T].view(4, 1, 1, 1) for c in (vp.posterior_mean_coef1, vp.posterior_mean_coef2))
    torch.testing.assert_close(training_target(vp, x_0, x_t, T, noise), c1 * x_0 + c2 * x_t)


def test_the_network_sees_the_noisy_image_and_its_time(images):
    x_0, x_t, noise = images
    seen = []
    squared_error(lambda x, t: seen.append((x, t)) or noise, process(), x_0, T, noise)
    torch.testing.assert_close(seen[0][0], x_t)
    assert seen[0][1] is T


@pytest.mark.parametrize("options", [{"beta_1": 0.0}, {"beta_T": 1.0}, {"beta_1": 0.03}, {"mean_type": "score"}])
def test_impossible_processes_are_refused(options):
    with pytest.raises(UserError):
        DiffusionConfig(**options)
