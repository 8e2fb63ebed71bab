"""β schedules against closed forms and published values; the process between its steps; what v means."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline

from ann2snn.config import BETA_SCHEDULES, MEAN_TYPES, DiffusionConfig
from ann2snn.diffusion.continuous_vp import ContinuousVP
from ann2snn.diffusion.predict import predicted_eps, predicted_x0, training_target, velocity
from ann2snn.diffusion.schedules import SCHEDULES
from ann2snn.errors import UserError
from tests.diffusion.vp_exact import normal, process


def made(schedule: str, steps: int = 1000, **options):
    return process(steps, schedule=schedule, **{"mean_type": "v"} | options)


# ---- schedules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "first", "middle", "last"),
    [
        ("linear", 1e-4, 0.01005996, 0.02),
        ("quad", 1e-4, 0.00574207, 0.02),
        ("warmup10", 1e-4, 0.02, 0.02),
        ("warmup50", 1e-4, 0.02, 0.02),
        ("const", 0.02, 0.02, 0.02),
        ("jsd", 0.001, 0.002, 1.0),
    ],
)
def test_betas_of_ddpm_torch(schedule, first, middle, last):
    betas = made(schedule).betas.tolist()
    assert [betas[0], betas[500], betas[999]] == pytest.approx([first, middle, last], rel=1e-6)


def test_alphas_bar_of_the_published_schedules():
    linear, cosine = made("linear").alphas_bar, made("cosine").alphas_bar
    assert linear[[0, 499, 800, 999]].tolist() == pytest.approx([0.9999, 0.0785872, 0.00150752, 4.03583e-5], rel=1e-5)
    expected = [0.999959, 0.999913, 0.999279, 0.971576, 0.845888, 0.492285, 0.143179, 0.0236161, 2.42877e-6, 2.42877e-9]
    assert cosine[[0, 1, 10, 100, 250, 500, 750, 900, 998, 999]].tolist() == pytest.approx(expected, rel=5e-6)
    c2 = torch.sqrt((1 - cosine[499]) / (1 - cosine[500]))
    c1 = torch.sqrt(cosine[499]) - torch.sqrt(cosine[500]) * c2
    assert float(c1) == pytest.approx(0.00218734, rel=1e-5)  # FSDDIM's step at t = 500


@pytest.mark.parametrize(
    ("schedule", "alpha_bar"),
    [
        ("jsd", lambda u: 1 - u),
        ("const", lambda u: 0.98 ** (40 * u)),
        ("cosine", lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.004 / 1.008 * math.pi) ** 2),
        ("sigmoid", lambda u: (math.tanh(1.5) - math.tanh(3 * u - 1.5)) / (2 * math.tanh(1.5))),
    ],
)
def test_alphas_bar_in_closed_form(schedule, alpha_bar):
    # The product telescopes; the last step of cosine and sigmoid is limited to β = 0.999.
    got = made(schedule, 40).alphas_bar.tolist()
    assert got[:-1] == pytest.approx([alpha_bar((t + 1) / 40) for t in range(39)], rel=1e-12)
    limited = schedule in ("cosine", "sigmoid")
    assert got[-1] == pytest.approx(0.001 * got[-2] if limited else alpha_bar(1), rel=1e-9, abs=1e-15)


def test_warm_up_rises_linearly_then_stays():
    betas = made("warmup50", 20, beta_1=0.001, beta_T=0.01).betas
    torch.testing.assert_close(torch.diff(betas[:10]), torch.full((9,), 0.001, dtype=torch.float64))
    assert (betas[10:] == 0.01).all()
    assert (made("warmup10", 20, beta_T=0.01).betas[2:] == 0.01).all()


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_every_schedule_is_a_process(schedule, steps):
    vp = made(schedule, steps)
    assert vp.betas.shape == (steps,) and vp.betas.dtype == torch.float64
    assert (vp.betas > 0).all() and (vp.betas <= 1).all()
    for values in (vp.posterior_mean_coef1, vp.posterior_mean_coef2, vp.posterior_var):
        assert torch.isfinite(values).all()


def test_names_agree():
    assert tuple(SCHEDULES) == BETA_SCHEDULES


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "cubic"},
        {"schedule": "jsd"},  # predicts ε by default
        {"cosine_offset": 0.0},
        {"cosine_offset": float("nan")},
        {"cosine_offset": "0.1"},
        {"sigmoid_start": 3.0},
        {"sigmoid_tau": 0.0},
        {"sigmoid_end": 50.0},
    ],
)
def test_impossible_schedules_are_refused(options):
    with pytest.raises(UserError):
        DiffusionConfig(**options)


def test_settings_stored_before_there_were_schedules_still_load():
    stored = {"diffusion_steps": 10, "beta_1": 1e-4, "beta_T": 0.02, "mean_type": "xstart", "var_type": "fixedsmall"}
    config = DiffusionConfig(**stored)
    assert config.schedule == "linear" and DiffusionConfig(**config.to_dict()) == config


# ---- between the steps ----------------------------------------------------------------------------------------------

CONTINUOUS = [name for name in BETA_SCHEDULES if name != "jsd"]


@pytest.mark.parametrize("schedule", CONTINUOUS)
def test_log_snr_goes_through_the_steps_and_falls(schedule):
    vp = made(schedule)
    alphas_bar = vp.alphas_bar.numpy()
    exact = 0.5 * np.log(alphas_bar / (1 - alphas_bar))
    np.testing.assert_allclose(vp.log_snr(np.arange(1000.0)), exact, rtol=1e-10, atol=1e-10)
    assert (np.diff(vp.log_snr(np.linspace(0, 999, 20_001))) < 0).all()


def test_a_plain_spline_through_the_sigmoid_schedule_would_rise():
    values = np.log(made("sigmoid").alphas_bar.numpy())
    assert (np.diff(CubicSpline(np.arange(1000), values)(np.linspace(990, 999, 1000))) > 0).any()


@given(schedule=st.sampled_from(CONTINUOUS), part=st.floats(0, 1), steps=st.sampled_from([2, 3, 50, 1000]))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_time_inverts_log_snr(schedule, part, steps):
    curve = made(schedule, steps).log_snr
    t = part * (steps - 1)
    assert curve.time(float(curve(t))) == pytest.approx(t, rel=1e-9, abs=1e-9)


def test_times_outside_the_process_do_not_exist():
    curve = made("linear").log_snr
    assert (curve.time(float(curve(0.0))), curve.time(float(curve(999.0)))) == (0.0, 999.0)
    for lam in (float(curve(0.0)) + 0.01, float(curve(999.0)) - 0.01):
        with pytest.raises(ValueError):
            curve.time(lam)
    for impossible in (made("jsd"), made("linear", 1)):
        with pytest.raises(UserError):
            _ = impossible.log_snr


def test_real_times_continue_the_whole_ones():
    vp = process(100)
    whole = torch.arange(100)
    torch.testing.assert_close(vp.alpha_bar_at(whole.double()), vp.alphas_bar, rtol=1e-13, atol=0)
    assert torch.equal(vp.alpha_bar_at(whole), vp.alphas_bar)
    between = vp.alpha_bar_at(whole[:-1] + 0.5)
    assert (between < vp.alphas_bar[:-1]).all() and (between > vp.alphas_bar[1:]).all()
    # Halving the steps of a linear schedule hardly changes ᾱ at the same real time.
    fine = process(199, beta_1=0.5e-4, beta_T=0.01)
    assert float(vp.alpha_bar_at(torch.tensor([60.5]))) == pytest.approx(float(fine.alphas_bar[121]), rel=0.01)


def test_diffusing_to_a_real_time():
    vp, x_0, noise = process(50), normal(1, 1, 2, 2), normal(1, 1, 2, 2, seed=1)
    alpha_bar = float(vp.alpha_bar_at(torch.tensor([20.25], dtype=torch.float64)))
    got = vp.diffuse(x_0, torch.tensor([20.25], dtype=torch.float64), noise)
    torch.testing.assert_close(got, math.sqrt(alpha_bar) * x_0 + math.sqrt(1 - alpha_bar) * noise)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_gddim_sees_the_same_process(schedule):
    config = DiffusionConfig(schedule=schedule)
    t = np.linspace(0, 999, 777)
    got = process(schedule=schedule).alpha_bar_at(torch.from_numpy(t)).numpy()
    np.testing.assert_allclose(ContinuousVP(config).alpha(t), got, rtol=1e-14)


# ---- v and the other predictions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [torch.tensor([0, 1, 250, 999]), torch.tensor([0.0, 0.3, 250.5, 999.0]).double()])
@pytest.mark.parametrize("mean_type", MEAN_TYPES)
def test_every_prediction_implies_image_and_noise(mean_type, t):
    vp = process(mean_type=mean_type, beta_T=0.01)
    x_0, noise = normal(4, 1, 3, 3).clamp(-1, 1), normal(4, 1, 3, 3, seed=1)
    x_t = vp.diffuse(x_0, t, noise)
    if mean_type == "xprev" and t.is_floating_point():
        with pytest.raises(UserError, match="whole diffusion steps"):
            predicted_x0(vp, x_0, x_t, t)
        return
    target = training_target(vp, x_0, x_t, t, noise)
    torch.testing.assert_close(predicted_x0(vp, target, x_t, t), x_0, rtol=0, atol=1e-8)
    torch.testing.assert_close(predicted_eps(vp, target, x_t, t), noise, rtol=0, atol=1e-8)


def test_x_t_and_v_are_image_and_noise_turned():
    vp, t = process(), torch.tensor([0, 300, 999])
    x_0, noise = normal(3, 1, 2, 2), normal(3, 1, 2, 2, seed=1)
    x_t, v = vp.diffuse(x_0, t, noise), velocity(vp, x_0, noise, t)
    torch.testing.assert_close(x_t**2 + v**2, x_0**2 + noise**2)
    # v is the derivative of x_t by the angle φ, tan φ = σ/α.
    angle = torch.acos(torch.sqrt(vp.alphas_bar[t])).view(-1, 1, 1, 1)
    x = lambda phi: torch.cos(phi) * x_0 + torch.sin(phi) * noise  # noqa: E731
    torch.testing.assert_close((x(angle + 1e-5) - x(angle - 1e-5)) / 2e-5, v, rtol=0, atol=1e-8)


def test_v_is_well_defined_where_nothing_is_left_of_the_image():
    vp, last = made("jsd", 10), torch.tensor([9])
    x_0, noise = normal(1, 1, 2, 2), normal(1, 1, 2, 2, seed=1)
    assert vp.alphas_bar[-1] == 0
    target = training_target(vp, x_0, noise, last, noise)
    torch.testing.assert_close(target, -x_0)
    torch.testing.assert_close(predicted_x0(vp, target, noise, last), x_0)
    torch.testing.assert_close(predicted_eps(vp, target, noise, last), noise)
