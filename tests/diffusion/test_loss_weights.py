"""Weights of the loss by diffusion time, against the published formulas, and across what is predicted."""

import pytest
import torch

from ann2snn.config import DiffusionConfig, TrainConfig
from ann2snn.diffusion import squared_error
from ann2snn.diffusion.loss_weights import check_loss_weight, loss_weights
from ann2snn.errors import UserError
from tests.diffusion.vp_exact import in_terms_of, normal, process

T = torch.tensor([0, 3, 40, 250, 700, 999])
GAMMA = 5.0
#: Hang et al., section 3.4; Choi et al., eq. 8, k = γ = 1, of the loss in ε.
PUBLISHED = {
    ("min_snr", "xstart"): lambda s: torch.minimum(s, torch.tensor(GAMMA)),
    ("min_snr", "epsilon"): lambda s: torch.minimum(s, torch.tensor(GAMMA)) / s,
    ("min_snr", "v"): lambda s: torch.minimum(s, torch.tensor(GAMMA)) / (s + 1),
    ("p2", "epsilon"): lambda s: 1 / (1 + s),
    ("none", "v"): torch.ones_like,
}


@pytest.mark.parametrize(("name", "mean_type"), PUBLISHED)
def test_the_published_formulas(name, mean_type):
    vp = process(mean_type=mean_type)
    snr = vp.alphas_bar[T] / (1 - vp.alphas_bar[T])
    expected = PUBLISHED[name, mean_type](snr)
    torch.testing.assert_close(loss_weights(vp, T, name, GAMMA), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["min_snr", "p2"])
def test_the_same_error_counts_the_same_whatever_is_predicted(name):
    x_0, noise = normal(len(T), 1, 2, 2).clamp(-1, 1), normal(len(T), 1, 2, 2, seed=1)
    eps_net = lambda x, t: torch.tanh(x)  # noqa: E731
    losses = []
    for mean_type in ("epsilon", "xstart", "v"):
        vp = process(mean_type=mean_type)
        error = squared_error(in_terms_of(vp, eps_net), vp, x_0, T, noise).flatten(1).mean(1)
        losses.append(error * loss_weights(vp, T, name, GAMMA))
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-8, atol=0)


def test_pure_noise_has_a_finite_weight():
    vp = process(10, schedule="jsd", mean_type="v")
    for name in ("min_snr", "p2"):
        assert float(loss_weights(vp, torch.tensor([9]), name)) == 0  # nothing of x_0 is to be learned there


def test_what_has_no_weight_is_refused():
    for config in (DiffusionConfig(mean_type="xprev"), DiffusionConfig(process="blur")):
        check_loss_weight(config, "none")
        with pytest.raises(UserError, match="--loss_weight=p2: only for --process=vp"):
            check_loss_weight(config, "p2")
    for options in ({"loss_weight": "p3"}, {"loss_weight": "p2", "loss_type": "kl"}, {"min_snr_gamma": 0.0}):
        with pytest.raises(UserError, match=f"--{next(iter(options))}={next(iter(options.values()))}"):
            TrainConfig(**options)
