"""The two ways of DDIM with a clipped x_0: noise recomputed to match it, or the network's own (SDDPM, SDM)."""

import pytest
import torch

from ann2snn.config import DiffusionConfig, SampleConfig
from ann2snn.diffusion import VP
from ann2snn.diffusion.process import check_sampling, run_sampler
from ann2snn.diffusion.samplers import sample_ddim
from ann2snn.errors import UserError
from tests.helpers import assert_close, assert_equal
from tests.scripts import ROOT

STEPS = 1000
PUBLISHED = {"steps": 50, "skip": "sddpm", "denoise": False}


def clamping(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A denoiser whose predicted images leave [−1, 1] nearly everywhere."""
    return torch.tanh(3 * x.roll(1, -1)) - 0.5 * x + t.view(-1, 1, 1, 1) / STEPS


def published_ddim(x: torch.Tensor, calls: int) -> tuple[torch.Tensor, int]:
    """SDDPM's sampler, written down from its description: (the state it ends at, values that were clamped)."""
    alphas_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0)
    times = [int(STEPS - 1 - i * STEPS / calls) for i in range(calls)]
    clamped = 0
    for t, s in zip(times, [*times[1:], 0], strict=True):
        eps = clamping(x, torch.full((len(x),), t))
        x_0 = (x - (1 - alphas_bar[t]).sqrt() * eps) / alphas_bar[t].sqrt()
        clamped += int((x_0.abs() > 1).sum())
        x = alphas_bar[s].sqrt() * x_0.clamp(-1, 1) + (1 - alphas_bar[s]).sqrt() * eps
    return x, clamped


@pytest.fixture
def x_t() -> torch.Tensor:
    return torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ddim(x: torch.Tensor, **options: object) -> torch.Tensor:
    return sample_ddim(clamping, VP(DiffusionConfig()), x, noise=torch.zeros_like, **PUBLISHED | options)


def test_with_the_networks_own_noise_it_is_the_published_sampler(x_t):
    expected, clamped = published_ddim(x_t, 50)
    assert clamped > 1000
    assert_close(ddim(x_t, ddim_epsilon="network"), expected, 1e-12)
    recomputed = ddim(x_t)
    assert (recomputed - expected).norm() > 0.1 * expected.norm()
    assert_equal(ddim(x_t, ddim_epsilon="recomputed"), recomputed)


def test_without_clipping_both_are_the_same(x_t):
    assert_equal(ddim(x_t, clip=False, ddim_epsilon="network"), ddim(x_t, clip=False))


@pytest.mark.parametrize("mean_type", ["epsilon", "xstart", "v", "xprev"])
def test_the_setting_reaches_the_sampler_whatever_is_predicted(x_t, mean_type):
    diffusion = DiffusionConfig(mean_type=mean_type)
    images = [
        run_sampler(clamping, diffusion, 5, SampleConfig("ddim", 10, ddim_epsilon=way), lambda: x_t)
        for way in ("network", "recomputed")
    ]
    assert not torch.equal(*images)


def test_unknown_names_are_refused(x_t):
    with pytest.raises(UserError, match="--ddim_epsilon=both"):
        ddim(x_t, ddim_epsilon="both")
    with pytest.raises(UserError, match="only --sampler=ddim"):
        check_sampling(DiffusionConfig(), 8, SampleConfig("dpmpp", 10, ddim_epsilon="network"))


def test_the_published_flagfile_asks_for_it():
    assert "--ddim_epsilon=network" in (ROOT / "config/SNN_train/sdm_cifar10.txt").read_text().splitlines()
