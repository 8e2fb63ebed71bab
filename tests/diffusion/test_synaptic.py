"""Synaptic current learning: golden losses of the published program, and the identities that hold between its terms."""

import math

import pytest
import torch

from ann2snn.config import DiffusionConfig
from ann2snn.diffusion import VP
from ann2snn.diffusion.predict import predicted_x0
from ann2snn.diffusion.synaptic import (
    SynapticLoss,
    ddim_coefficients,
    reconstruction_weights,
    synaptic_loss,
    synaptic_terms,
    target_weights,
)
from ann2snn.errors import UserError
from ann2snn.nets.fsddim import FSDDIM, FSDDIMConfig
from tests.diffusion.vp_exact import normal
from tests.fill import deterministic_fill
from tests.helpers import assert_close, assert_equal

ALL = SynapticLoss(4, spike=1.0)
mean_types = pytest.mark.parametrize("mean_type", ["v", "epsilon", "xstart", "xprev"])


def published(mean_type: str = "v") -> VP:
    return VP(DiffusionConfig(mean_type=mean_type, schedule="cosine"))


def batch(n: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_0, t and noise."""
    return normal(n, 1, 4, 4).clamp(-1, 1), torch.tensor([0, 500, 999])[:n], normal(n, 1, 4, 4, seed=1)


def answers(outputs: torch.Tensor):
    """A network that returns `outputs` [L, N, C, H, W] whatever it is asked."""

    def net(currents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert currents.shape == outputs.flatten(0, 1).shape and len(t) == outputs.shape[1]
        return outputs.flatten(0, 1)

    return net


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_published_schedule_and_coefficients():
    vp = published()
    times = [0, 1, 10, 100, 250, 500, 750, 900, 998, 999]
    alphas = [0.999959, 0.999913, 0.999279, 0.971576, 0.845888, 0.492285, 0.143179, 0.0236161, 2.42877e-6, 2.42877e-9]
    assert vp.alphas_bar[times].tolist() == pytest.approx(alphas, rel=5e-6)
    c_1, c_2 = ddim_coefficients(vp.alphas_bar, vp.alphas_bar_prev)
    assert (float(c_1[0]), float(c_2[0])) == (1, 0)
    assert c_1[[1, 500]].tolist() == pytest.approx([0.31282, 0.00218734], rel=2e-5)
    x_0, eps = 0.7, -0.3  # a step from t to t − 1 keeps the image and the noise
    for t in (1, 10, 999):
        now, before = float(vp.alphas_bar[t]), float(vp.alphas_bar[t - 1])
        x_t = math.sqrt(now) * x_0 + math.sqrt(1 - now) * eps
        expected = math.sqrt(before) * x_0 + math.sqrt(1 - before) * eps
        assert float(c_1[t]) * x_0 + float(c_2[t]) * x_t == pytest.approx(expected, abs=1e-12)


def test_weights_of_the_target_follow_what_is_predicted():
    vp = published()
    assert_equal(target_weights(vp), vp.alphas_bar)
    assert_equal(target_weights(published("epsilon")), torch.ones(1000, dtype=torch.float64))
    snr = vp.alphas_bar / (1 - vp.alphas_bar)
    assert_close(target_weights(published("xstart")), snr, 1e-12)
    step_back = target_weights(published("xprev"))
    assert_close(step_back[1:], 0.5 / vp.posterior_var[1:], 1e-12)
    assert step_back[0] == step_back[1], "finite where the posterior has no variance"


def test_published_weights_of_the_reconstruction():
    weights = reconstruction_weights(published())
    expected = [1, 0.45522, 0.26902, 0.2432, 0.24265, 0.24257, 0.24255, 0.23488]
    assert weights[[0, 1, 10, 100, 250, 500, 998, 999]].tolist() == pytest.approx(expected, abs=1e-5)


@mean_types
def test_reconstruction_weighs_what_a_step_makes_of_the_output(mean_type):
    vp = published(mean_type)
    t = torch.arange(0, 1000, 9)
    x_t, output = normal(len(t), 1), normal(len(t), 1, seed=1).requires_grad_()
    c_1, c_2 = ddim_coefficients(vp.alphas_bar[t, None], vp.alphas_bar_prev[t, None])
    (c_1 * predicted_x0(vp, output, x_t, t) + c_2 * x_t).sum().backward()
    weights = reconstruction_weights(vp)
    scale = float(output.grad[0].abs() / weights[0])
    torch.testing.assert_close(output.grad[:, 0].abs() / scale, weights[t], rtol=1e-9, atol=0)
    assert weights.max() == 1


# ---- terms -----------------------------------------------------------------------------------------------------------


def test_golden_losses():
    net = FSDDIM(FSDDIMConfig(in_channels=1, image_size=8, ch=16, ch_mult=(1, 2), num_res_blocks=1, spike_steps=4))
    deterministic_fill(net)
    x = 1.5 * torch.sin(0.05 * torch.arange(128.0)).view(2, 1, 8, 8)
    arguments = (net.eval(), published(), x.clamp(-1, 1), torch.tensor([3, 900]), x.flip(-1))
    terms = synaptic_terms(*arguments, ALL)
    means = {name: float(term.detach().mean()) for name, term in terms.items()}
    expected = {"image": 0.601802, "spike": 0.630177, "reconstruction": 0.015658}
    assert means == {name: pytest.approx(value, abs=2e-6) for name, value in expected.items()}
    weighted = synaptic_loss(*arguments, SynapticLoss(4, image=2.0, spike=0.5, reconstruction=3.0))
    assert weighted.shape == (2,)
    torch.testing.assert_close(weighted, 2 * terms["image"] + 0.5 * terms["spike"] + 3 * terms["reconstruction"])
    published_loss = synaptic_loss(*arguments, SynapticLoss(4))
    torch.testing.assert_close(published_loss, terms["image"] + terms["reconstruction"])
    net.train()
    synaptic_loss(*arguments, SynapticLoss(4)).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_reconstruction_is_the_variance_over_time():
    x_0, noise, t = torch.zeros(4, 1, 2, 2), torch.ones(4, 1, 2, 2), torch.tensor([0, 250, 500, 999])
    ramp = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 4, 1, 2, 2)
    term = synaptic_terms(answers(ramp), published(), x_0, t, noise, ALL)["reconstruction"]
    assert float(term.mean()) == pytest.approx(0.537532, abs=1e-6)
    torch.testing.assert_close(term, 1.25 * reconstruction_weights(published())[t].float())


@mean_types
def test_terms_coincide_where_the_currents_do_not_change(mean_type):
    vp, (x_0, t, noise) = published(mean_type), batch()
    steady = normal(3, 1, 4, 4, seed=2).expand(4, 3, 1, 4, 4)
    terms = synaptic_terms(answers(steady), vp, x_0, t, noise, ALL)
    assert_close(terms["spike"], terms["image"], 1e-12)
    assert float(terms["reconstruction"].max()) < 1e-30 and terms["image"].isfinite().all()


@mean_types
def test_spike_error_is_image_error_and_variance(mean_type):
    vp, (x_0, t, noise) = published(mean_type), batch()
    outputs = normal(4, 3, 1, 4, 4, seed=2)
    terms = synaptic_terms(answers(outputs), vp, x_0, t, noise, ALL)
    variance = outputs.var(0, correction=0).mean((1, 2, 3))
    assert_close(terms["reconstruction"], variance * reconstruction_weights(vp)[t], 1e-12)
    assert_close(terms["spike"], terms["image"] + variance * target_weights(vp)[t], 1e-12)
    # Each image's own numbers: the loss of a batch is made of the losses of its images.
    alone = synaptic_loss(answers(outputs[:, 1:2]), vp, x_0[1:2], t[1:2], noise[1:2], ALL)
    assert_close(alone, synaptic_loss(answers(outputs), vp, x_0, t, noise, ALL)[1:2], 1e-12)


def test_the_network_gets_the_noisy_image_at_every_step_and_the_right_answer_costs_nothing():
    vp, (x_0, t, noise) = published(), batch()
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in (vp.alphas_bar[t].sqrt(), (1 - vp.alphas_bar[t]).sqrt()))

    def net(currents: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        assert_equal(times, t)
        torch.testing.assert_close(currents, torch.cat([alpha * x_0 + sigma * noise] * 4))
        return torch.cat([alpha * noise - sigma * x_0] * 4)

    assert float(synaptic_loss(net, vp, x_0, t, noise, ALL).max()) < 1e-30


def test_terms_without_a_weight_are_not_computed():
    outputs, (x_0, t, noise) = normal(4, 3, 1, 4, 4), batch()
    for name in ("image", "spike", "reconstruction"):
        weights = SynapticLoss(4, **{"image": 0.0, "spike": 0.0, "reconstruction": 0.0, name: 0.7})
        terms = synaptic_terms(answers(outputs), published(), x_0, t, noise, weights)
        assert list(terms) == [name]
        assert_equal(synaptic_loss(answers(outputs), published(), x_0, t, noise, weights), 0.7 * terms[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": -1.0}, "weight -1.0 of the image loss"),
        ({"spike": math.nan}, "weight nan of the spike loss"),
        ({"reconstruction": "much"}, "weight much of the reconstruction loss"),
        ({"image": 0.0, "reconstruction": 0}, "nothing to learn"),
        ({"spike_steps": 0}, "--timestep=0"),
    ],
)
def test_weights_that_make_no_loss_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SynapticLoss(**{"spike_steps": 4} | options)
