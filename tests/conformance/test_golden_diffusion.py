"""The process, predictions, ancestral chains and training loss of the reference: diffusion.

Tolerances: float64 buffers 1e-12 relative once both start from the same betas (the reference rounds its betas to
float32, ours are exact, which moves any buffer by less than 2e-6); float32 values 1e-6, whole 20-step chains 1e-5
(relative L2). The reference has no clip inside the chain, so the chains run with clip=False.
"""

import pytest
import torch

from ann2snn.config import DiffusionConfig
from ann2snn.diffusion import VP, sample_ddpm, squared_error
from ann2snn.diffusion.predict import predicted_x0, training_target, x0_from_eps
from ann2snn.diffusion.vp import gather
from tests.helpers import assert_close, golden

FILE = golden("diffusion")
mean_types = pytest.mark.parametrize("mean_type", ["epsilon", "xstart", "xprev"])
var_types = pytest.mark.parametrize("var_type", ["fixedlarge", "fixedsmall"])


def toy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.5 * x + 0.01 * t.to(x.dtype)[:, None, None, None])


def process(steps: int = 1000, mean_type: str = "epsilon", var_type: str = "fixedlarge") -> VP:
    return VP(DiffusionConfig(diffusion_steps=steps, mean_type=mean_type, var_type=var_type))


def linspace_rounded_to_float32(start: float, end: float, steps: int, dtype: torch.dtype) -> torch.Tensor:
    return linspace(start, end, steps, dtype=torch.float32).to(dtype)


linspace = torch.linspace


@pytest.mark.parametrize("rounded_betas", [True, False])
def test_buffers(rounded_betas, monkeypatch):
    if rounded_betas:
        monkeypatch.setattr(torch, "linspace", linspace_rounded_to_float32)
    vp = process()
    inverse = 1 / vp.alphas_bar
    ours = {
        "sampler/betas": vp.betas,
        "sampler/sqrt_recip_alphas_bar": torch.sqrt(inverse),
        "sampler/sqrt_recipm1_alphas_bar": torch.sqrt(inverse - 1),
        "sampler/posterior_var": vp.posterior_var,
        "sampler/posterior_log_var_clipped": vp.posterior_log_var,
        "sampler/posterior_mean_coef1": vp.posterior_mean_coef1,
        "sampler/posterior_mean_coef2": vp.posterior_mean_coef2,
        "trainer/betas": vp.betas,
        "trainer/sqrt_alphas_bar": torch.sqrt(vp.alphas_bar),
        "trainer/sqrt_one_minus_alphas_bar": torch.sqrt(1 - vp.alphas_bar),
    }
    assert set(ours) == {f"{who}/{name}" for who in ("sampler", "trainer") for name in FILE.under(f"T1000/{who}/")}
    for name, value in ours.items():
        expected = FILE[f"T1000/{name}"]
        assert value.dtype == expected.dtype == torch.float64
        torch.testing.assert_close(value, expected, rtol=1e-12 if rounded_betas else 2e-6, atol=1e-15)


@var_types
def test_log_variance_at_every_time(var_type):
    expected = FILE[f"T1000/{var_type}/log_var_of_t"]
    torch.testing.assert_close(process(var_type=var_type).model_log_var().float(), expected, rtol=1e-6, atol=0)


def test_posterior_and_predicted_images():
    vp = process()
    x_t, x_0, t, eps = (FILE[f"pmv/{name}"] for name in ("x_t", "x_0", "t", "eps"))
    assert_close(toy(x_t, t), eps, 1e-6)
    assert_close(vp.posterior_mean(x_0, x_t, t), FILE["pmv/q_mean"], 1e-6)
    assert_close(gather(vp.posterior_log_var, t, x_t), FILE["pmv/q_log_var"], 1e-6)
    assert_close(x0_from_eps(vp, eps, x_t, t), FILE["pmv/xstart_from_eps"], 1e-6)
    assert_close(predicted_x0(process(mean_type="xprev"), eps, x_t, t), FILE["pmv/xstart_from_xprev"], 1e-6)


@mean_types
@var_types
def test_mean_and_variance_of_a_reverse_step(mean_type, var_type):
    vp = process(mean_type=mean_type, var_type=var_type)
    x_t, t, output = (FILE[f"pmv/{name}"] for name in ("x_t", "t", "eps"))
    mean = vp.posterior_mean(predicted_x0(vp, output, x_t, t), x_t, t)
    # Through x_0 and back, the network's own x_{t−1} returns only up to the cancellation in between.
    assert_close(mean, FILE[f"pmv/{var_type}/{mean_type}/mean"], 1e-4 if mean_type == "xprev" else 1e-6)
    assert_close(gather(vp.model_log_var(), t, x_t), FILE[f"pmv/{var_type}/{mean_type}/log_var"], 1e-6)


@mean_types
@var_types
def test_chain(mean_type, var_type):
    noise, states = iter(FILE["chain/noise"]), []
    x_0 = sample_ddpm(
        toy,
        process(20, mean_type, var_type),
        FILE["chain/x_T"],
        noise=lambda: next(noise),
        clip=False,
        on_step=lambda step, x: states.append(x.clone()),
    )
    tag = f"chain/{mean_type}/{var_type}"
    expected = FILE[f"{tag}/x_t"]
    assert len(states) == 20
    for ours, theirs in zip(states, expected, strict=True):
        assert_close(ours, theirs, 1e-5)
    assert_close(x_0, FILE[f"{tag}/x_0"], 1e-5)
    assert next(noise, None) is None


def test_training_loss():
    x_0, t, noise = (FILE[f"train/{name}"] for name in ("x_0", "t", "noise"))
    assert_close(process().diffuse(x_0, t, noise), FILE["train/x_t"], 1e-6)
    assert training_target(process(), x_0, FILE["train/x_t"], t, noise) is noise
    loss = squared_error(toy, process(), x_0, t, noise)
    assert_close(loss, FILE["train/loss"], 1e-6)
    assert_close(loss.mean(), FILE["train/loss_mean"], 1e-6)
