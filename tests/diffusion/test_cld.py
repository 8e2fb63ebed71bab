"""CLD's closed forms against published numbers, matrix exponentials and integrated differential equations."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from ann2snn.config import DiffusionConfig, SampleConfig
from ann2snn.diffusion.cld import CLD, CLDConfig
from ann2snn.diffusion.continuous_loss import noise_error, training_times
from ann2snn.diffusion.process import run_sampler
from ann2snn.errors import UserError

PROCESS = CLD()
OTHER = CLD(CLDConfig(inverse_mass=9.0, beta_0=2.0, beta_1=5.0, gamma=0.3, jitter=1e-3))
both = pytest.mark.parametrize("process", [PROCESS, OTHER], ids=["published", "other"])
TIMES = (1e-3, 0.02, 0.1, 0.5, 1.0)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual, expected, tolerance: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


# ---- Ψ ---------------------------------------------------------------------------------------------------------------

TRANSITIONS = {
    (1.0, 0.1): [[0.0061220036, 0.0107508356], [-0.0026877089, -0.0046288320]],
    (0.1, 1.0): [[-8304.4707392, -19287.8030073], [4821.9507518, 10983.3322680]],
    (1.0, 0.0): [[0.0030191637, 0.0053674020], [-0.0013418505, -0.0023482384]],
}


@pytest.mark.parametrize("times", TRANSITIONS)
def test_transition_values(times):
    close(PROCESS.transition(*times), TRANSITIONS[times], 6e-8 if times[0] < times[1] else 6e-11)


@both
def test_transition_is_the_exponential_of_the_integrated_drift(process):
    for t, s in [(0.7, 0.2), (0.1, 0.6), (1.0, 0.0)]:
        integral = (process.integrated_beta(t) - process.integrated_beta(s)) / process.beta(1.0) * process.drift(1.0)
        np.testing.assert_allclose(process.transition(t, s), expm(integral), rtol=1e-9)


@both
def test_transitions_compose(process):
    direct = process.transition(0.9, 0.2)
    np.testing.assert_allclose(process.transition(0.9, 0.5) @ process.transition(0.5, 0.2), direct, rtol=1e-12)
    close(process.transition(0.4, 0.4), np.eye(2), 0)


@both
def test_drift_generates_the_transition(process):
    h = 1e-5
    slope = (process.transition(0.4 + h, 0.3) - process.transition(0.4 - h, 0.3)) / (2 * h)
    close(slope, process.drift(0.4) @ process.transition(0.4, 0.3), 1e-6)


# ---- Σ, L, R ---------------------------------------------------------------------------------------------------------

COVARIANCES = {  # t: Σ_xx, Σ_xv, Σ_vv; L_11, L_21, L_22; R by rows; θ
    0.001: (
        (4.1940811e-6, 2.1919649e-4, 0.0175585983),
        (0.0020479456, 0.1070323799, 0.0781195749),
        (0.0008487504, 0.0018637875, -0.0267363135, 0.1297835423),
        1.1434690,
    ),
    0.1: (
        (0.2218112320, 0.1298597596, 0.2157583909),
        (0.4709683981, 0.2757292424, 0.3738071372),
        (0.1127519242, -0.4572726054, 0.4289476045, -0.1782199302),
        4.9541414,
    ),
    0.5: (
        (0.9864607582, 0.0052868796, 0.2479335546),
        (0.9932073088, 0.0053230374, 0.4979008133),
        (-0.5841520453, 0.8032603228, -0.4058099730, -0.2885339155),
        8.4827476,
    ),
    1.0: (
        (0.9999839705, 7.0761951e-6, 0.2499968760),
        (0.9999919852, 7.0762518e-6, 0.4999968760),
        (0.9966195979, -0.0820569773, 0.0410356135, 0.4983100987),
        12.4842206,
    ),
}


@pytest.mark.parametrize("t", COVARIANCES)
def test_covariance_factors_and_angle(t):
    (xx, xv, vv), (l11, l21, l22), rows, angle = COVARIANCES[t]
    close(PROCESS.covariance(t), [[xx, xv], [xv, vv]], 1e-10)
    close(PROCESS.factor(t, "L"), [[l11, 0], [l21, l22]], 1e-10)
    close(PROCESS.factor(t), np.reshape(rows, (2, 2)), 1e-9)
    close(PROCESS.rotation_angle(t), angle, 6e-8)


def covariance_ode(process: CLD, span: tuple[float, float], start: np.ndarray) -> np.ndarray:
    def rate(t, flat):
        sigma, drift = flat.reshape(2, 2), process.drift(t)
        return (drift @ sigma + sigma @ drift.T + process.diffusion(t)).ravel()

    return solve_ivp(rate, span, start.ravel(), method="DOP853", rtol=1e-12, atol=1e-15).y[:, -1].reshape(2, 2)


@both
def test_covariance_solves_its_equation_from_the_initial_variances(process):
    start = np.diag(process.initial_variance())
    close(process.covariance(0.0), start, 0)
    for t in (0.01, 0.3, 1.0):
        close(process.covariance(t), covariance_ode(process, (0.0, t), start), 1e-11)


def test_initial_variances_are_those_of_the_published_experiments():
    assert PROCESS.initial_variance() == pytest.approx((1e-6, 0.010001), rel=1e-12)


def test_covariance_tends_to_the_stationary_law():
    fast = CLD(CLDConfig(beta_0=40.0, inverse_mass=5.0))
    close(fast.covariance(1.0), np.diag([1.0, 0.2]), 1e-12)


@both
def test_r_solves_its_equation(process):
    def rate(t, flat):
        r = flat.reshape(2, 2)
        return (process.drift(t) @ r + process.diffusion(t) @ np.linalg.inv(r).T / 2).ravel()

    start = np.diag(np.sqrt(process.initial_variance()))
    close(process.factor(0.0), start, 1e-15)
    solution = solve_ivp(rate, (0.0, 1.0), start.ravel(), t_eval=TIMES, method="DOP853", rtol=1e-11, atol=1e-13)
    for k, t in enumerate(TIMES):
        close(process.factor(t), solution.y[:, k].reshape(2, 2), 1e-9)


@both
def test_both_factors_are_roots_of_the_covariance_and_differ_by_a_rotation(process):
    times = np.array(TIMES)
    r, lower = process.factor(times), process.factor(times, "L")
    for factor in (r, lower):
        close(factor @ factor.swapaxes(-1, -2), process.covariance(times), 1e-14)
    turn = np.linalg.solve(lower, r)
    close(turn @ turn.swapaxes(-1, -2), np.broadcast_to(np.eye(2), turn.shape), 1e-11)
    close(np.linalg.det(turn), np.ones(len(times)), 1e-11)
    close(turn, process.rotation(times), 1e-11)
    assert np.all(lower[:, 0, 1] == 0) and np.abs(r[-1, 0, 1]) > 1e-3


@both
def test_the_angle_grows_without_jumps_between_the_panels_of_its_quadrature(process):
    times = np.concatenate([[0.0], np.geomspace(1e-6, 1.0, 4000)])
    angle = process.rotation_angle(times)
    sigma = process.covariance(times)
    rate = process.beta(times) / process.mass * np.sqrt(np.linalg.det(sigma)) / sigma[:, 0, 0]
    trapezoid = np.diff(times) * (rate[1:] + rate[:-1]) / 2
    np.testing.assert_allclose(np.diff(angle), trapezoid, rtol=1e-4)
    assert angle[0] == 0


# ---- states ----------------------------------------------------------------------------------------------------------


def test_diffused_points_have_the_mean_and_covariance_of_the_kernel():
    t = torch.full((100_000,), 0.5, dtype=torch.float64)
    u = PROCESS.diffuse(torch.full((100_000, 1), 0.5, dtype=torch.float64), t, draws(100_000, 2))
    close(u.mean(dim=0), (0.04579, -0.01832), 0.012)
    expected = np.array([[0.9864607582, 0.0052868796], [0.0052868796, 0.2479335546]])
    covariance = np.cov(u.T.numpy())
    np.testing.assert_allclose(np.diag(covariance), np.diag(expected), rtol=0.02)
    close(covariance[0, 1], expected[0, 1], 0.01)


@pytest.mark.parametrize("factor", ["R", "L"])
def test_diffuse_puts_positions_first_and_mixes_each_channel_with_its_own_velocity(factor):
    x_0, noise, t = draws(3, 2, 4, 5), draws(3, 4, 4, 5, seed=1), torch.tensor([0.01, 0.3, 1.0], dtype=torch.float64)
    u = PROCESS.diffuse(x_0, t, noise, factor)
    for i in range(3):
        psi, k = PROCESS.transition(float(t[i]), 0.0), PROCESS.factor(float(t[i]), factor)
        for c in range(2):
            eps_x, eps_v = noise[i, c], noise[i, 2 + c]
            torch.testing.assert_close(u[i, c], psi[0, 0] * x_0[i, c] + k[0, 0] * eps_x + k[0, 1] * eps_v)
            torch.testing.assert_close(u[i, 2 + c], psi[1, 0] * x_0[i, c] + k[1, 0] * eps_x + k[1, 1] * eps_v)
    torch.testing.assert_close(PROCESS.data(u), u[:, :2])


@pytest.mark.parametrize("factor", ["R", "L"])
def test_score_is_the_gradient_of_the_log_density(factor):
    time = 0.2
    t = torch.full((6,), time, dtype=torch.float64)
    x_0, noise = draws(6, 1), draws(6, 2, seed=1)
    u = PROCESS.diffuse(x_0, t, noise, factor).requires_grad_()
    mean = torch.cat([x_0, torch.zeros_like(x_0)], dim=1) @ torch.as_tensor(PROCESS.transition(time, 0.0)).T
    law = torch.distributions.MultivariateNormal(mean, torch.as_tensor(PROCESS.covariance(time)))
    (gradient,) = torch.autograd.grad(law.log_prob(u).sum(), u)
    torch.testing.assert_close(PROCESS.score(noise, t, factor), gradient, rtol=1e-9, atol=1e-9)


def test_prior_has_the_stationary_variances():
    u = PROCESS.prior(draws(2, 4, 3, 3))
    torch.testing.assert_close(u[:, :2], draws(2, 4, 3, 3)[:, :2])
    torch.testing.assert_close(u[:, 2:], draws(2, 4, 3, 3)[:, 2:] / 2)


def test_a_state_needs_an_even_number_of_channels():
    with pytest.raises(UserError, match="multiple of 2"):
        PROCESS.prior(draws(2, 3))


def test_denoising_is_one_drift_step_of_the_reverse_sde():
    t, u, eps = 1e-3, draws(4, 2), draws(4, 2, seed=1)
    score = PROCESS.score(eps, torch.full((4,), t, dtype=torch.float64))
    x, v = u[:, 0], u[:, 1]
    expected_x = x - t * 4 * 4 * v
    expected_v = v - t * 4 * (-x - 4 * v) + t * 8 * score[:, 1]
    torch.testing.assert_close(PROCESS.denoise(u, eps, t), torch.stack([expected_x, expected_v], dim=1))


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", ["R", "L"])
def test_a_silent_network_has_loss_one_in_both_halves(factor):
    x_0, noise = draws(500, 1, 8, 8), draws(500, 2, 8, 8, seed=1)
    t = training_times(PROCESS, torch.rand(500, dtype=torch.float64))
    error = noise_error(lambda u, _: torch.zeros_like(u), PROCESS, x_0, t, noise, factor=factor)
    assert error.shape == noise.shape
    assert float(error[:, :1].mean()) == pytest.approx(1, abs=0.02)
    assert float(error[:, 1:].mean()) == pytest.approx(1, abs=0.02)


def test_a_network_that_inverts_the_kernel_has_no_loss():
    x_0, noise, t = draws(6, 1), draws(6, 2, seed=1), torch.linspace(0.1, 1, 6, dtype=torch.float64)

    def net(u, times):
        at_rest = torch.cat([x_0, torch.zeros_like(x_0)], dim=1)
        mean = PROCESS.apply(PROCESS.transition(times.numpy(), np.zeros(6)), at_rest)
        return PROCESS.apply(np.linalg.inv(PROCESS.factor(times.numpy())), u - mean)

    assert float(noise_error(net, PROCESS, x_0, t, noise).max()) < 1e-20


def test_training_times_fill_the_interval_from_t_min():
    uniform = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    close(training_times(PROCESS, uniform), (1e-5, 0.500005, 1.0), 1e-12)


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"inverse_mass": 0.0},
        {"beta_0": -1.0},
        {"beta_1": -5.0},
        {"gamma": -0.1},
        {"jitter": 0.0},
        {"t_end": 0.0},
        {"t_min": 1.0},
        {"beta_0": float("nan")},
        {"gamma": "x"},
    ],
    ids=str,
)
def test_bad_constants_are_refused_by_name(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        CLDConfig(**bad)


def test_processes_are_equal_when_their_constants_are():
    assert CLD() == PROCESS and hash(CLD()) == hash(PROCESS)
    assert CLD(CLDConfig(beta_0=5.0)) != PROCESS


def test_what_is_for_vp_alone_is_refused():
    config, sample = DiffusionConfig(process="cld"), SampleConfig("ddim", steps=2)
    with pytest.raises(
        UserError, match="--sampler=ddim: samples --process=vp only; --process=cld needs gddim or euler"
    ):
        run_sampler(lambda x, t: x, config, 4, sample, lambda: draws(1, 2, 4, 4))
    with pytest.raises(ValueError, match='loss_type="scl" is for VP alone'):
        x = draws(1, 1, 4, 4)
        PROCESS.loss(lambda x, t: x, config, x, torch.tensor([0.5]), draws(1, 2, 4, 4), "scl")
