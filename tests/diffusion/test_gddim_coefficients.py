"""gDDIM's grids and coefficients against published values, adaptive quadrature and integrated equations."""

import numpy as np
import pytest
from scipy.integrate import quad_vec, solve_ivp

from ann2snn.config import DiffusionConfig
from ann2snn.diffusion.blur import BDM, BDMConfig
from ann2snn.diffusion.cld import CLD, CLDConfig
from ann2snn.diffusion.continuous_vp import ContinuousVP
from ann2snn.diffusion.gddim_coefficients import (
    gddim_coefficients,
    intervals_for,
    noise_factor,
    step_coefficients,
    time_grid,
)
from ann2snn.errors import UserError

PROCESS = CLD()
OTHER = CLD(CLDConfig(inverse_mass=9.0, beta_0=2.0, beta_1=5.0, gamma=0.3, jitter=1e-3))
VP = ContinuousVP(DiffusionConfig())
BLUR = BDM(BDMConfig(image_size=3, sigma_blur_max=2.0))
LAMBDAS = (0.1, 0.3, 0.5, 0.7, 1.0)


def noise_covariance(process, t, s, lam):
    """P of the stochastic step from s to t, from its root."""
    root = noise_factor(process, t, s, lam)
    return root @ np.swapaxes(root, -1, -2)


# ---- grids and call counts -------------------------------------------------------------------------------------------


def test_grid_values():
    expected = (
        1, 0.79638228, 0.61591898, 0.45861012, 0.32445569, 0.21345569, 0.12561012, 0.06091898,
        0.01938228, 0.001,
    )  # fmt: skip
    np.testing.assert_allclose(time_grid(PROCESS, 9), expected, rtol=0, atol=5e-9)
    assert time_grid(PROCESS, 1) == (1.0, 1e-3)
    np.testing.assert_allclose(time_grid(VP, 3, power=1), (999, 666, 333, 0), rtol=1e-12)


def test_intervals_of_a_call_budget():
    assert [intervals_for(10, c, d) for c in ("none", "pec") for d in (False, True)] == [10, 9, 10, 9]
    assert (intervals_for(19, "pece"), intervals_for(20, "pece", denoise=True)) == (10, 10)
    for calls, corrector, denoise in [(20, "pece", False), (19, "pece", True), (0, "none", False), (1, "none", True)]:
        with pytest.raises(UserError, match="network calls"):
            intervals_for(calls, corrector, denoise)
    with pytest.raises(UserError, match="whole number"):
        intervals_for(2.5)


# ---- deterministic coefficients --------------------------------------------------------------------------------------

DEGREE_ZERO = {
    ("R", 0.5, 1.0): [[180.5803556, 205.0172591], [-120.4353256, -127.3622633]],
    ("R", 0.05, 0.1): [[0.2944361023, 0.0050043048], [-0.8532526370, 0.0757727756]],
    ("L", 0.5, 1.0): [[0, 329.6057147], [0, -218.4077021]],
    ("L", 0.05, 0.1): [[0, 0.2989316422], [0, -0.8782226802]],
}


@pytest.mark.parametrize("case", DEGREE_ZERO, ids=str)
def test_degree_zero_values(case):
    factor, t, s = case
    (value,) = step_coefficients(PROCESS, t, s, (s,), factor)
    np.testing.assert_allclose(value, DEGREE_ZERO[case], rtol=0, atol=6e-8 if s == 1 else 6e-11)


def by_adaptive_quadrature(process, t: float, s: float, nodes, j: int, factor: str) -> np.ndarray:
    """The definition of C_j, panel by panel with an error bound, in log time."""

    def integrand(log_time: float) -> np.ndarray:
        tau = np.exp(log_time)
        basis = np.prod([(tau - node) / (nodes[j] - node) for m, node in enumerate(nodes) if m != j])
        inverse = np.linalg.inv(process.factor(tau, factor)).swapaxes(-1, -2)
        return tau * basis * process.transition(t, tau) @ process.diffusion(tau) @ inverse / 2

    return quad_vec(integrand, np.log(s), np.log(t), epsabs=1e-10, epsrel=1e-10)[0]


@pytest.mark.parametrize("factor", ["R", "L"])
@pytest.mark.parametrize("process", [PROCESS, OTHER], ids=["published", "other"])
def test_coefficients_are_the_integrals_they_stand_for(process, factor):
    for nodes, t in [((0.3, 0.5, 0.7, 1.0), 0.15), ((0.02, 0.06), 1e-3), ((1e-3, 0.02, 0.06), 1e-3)]:
        s = nodes[1] if nodes[0] == t else nodes[0]
        values = step_coefficients(process, t, s, nodes, factor)
        for j, value in enumerate(values):
            expected = by_adaptive_quadrature(process, t, s, nodes, j, factor)
            np.testing.assert_allclose(value, expected, rtol=1e-7, atol=1e-8 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(
    ("process", "nodes", "t"),
    [(VP, (500.0, 600.0, 800.0), 350.0), (VP, (20.0, 60.0), 1.0), (BLUR, (0.4, 0.6, 0.9), 0.2), (BLUR, (0.99,), 0.9)],
    ids=["vp", "vp at its end", "blur", "blur at its start"],
)
def test_scalar_processes_share_the_formula(process, nodes, t):
    for j, value in enumerate(step_coefficients(process, t, nodes[0], nodes)):
        expected = by_adaptive_quadrature(process, t, nodes[0], nodes, j, "R")
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("process", [PROCESS, OTHER, VP, BLUR], ids=["cld", "other cld", "vp", "blur"])
def test_quadrature_has_converged(process, monkeypatch):
    """Seven panels in place of each change nothing, even over the longest step and next to blur diffusion's pole."""
    span = process.t_start
    cases = [((0.2 * span, 0.5 * span, 0.9 * span, span), span, process.t_end), ((0.5 * span, span), span, 0.3 * span)]
    values = [step_coefficients(process, t, s, nodes) for nodes, s, t in cases]
    coarse = process.breaks

    def fine(t: float, s: float) -> np.ndarray:
        ends = coarse(t, s)
        parts = [np.linspace(a, b, 8)[:-1] for a, b in zip(ends, ends[1:], strict=False)]
        return np.concatenate([*parts, ends[-1:]])

    monkeypatch.setattr(process, "breaks", fine)
    for (nodes, s, t), before in zip(cases, values, strict=True):
        for one, other in zip(before, step_coefficients(process, t, s, nodes), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-9 * np.abs(other).max())


@pytest.mark.parametrize("process", [PROCESS, OTHER, VP, BLUR], ids=["cld", "other cld", "vp", "blur"])
@pytest.mark.parametrize("order", range(4))
def test_coefficients_add_up_to_the_closed_form_and_start_with_lower_degrees(process, order):
    grid = time_grid(process, 6)
    coefficients = gddim_coefficients(process, grid, order)
    assert [len(step) for step in coefficients.predictor] == [min(i, order) + 1 for i in range(6)]
    assert all(step == () for step in coefficients.corrector) and coefficients.noise is None
    for i, (s, t) in enumerate(zip(grid, grid[1:], strict=False)):
        closed = process.factor(t) - process.transition(t, s) @ process.factor(s)
        scale = max(1, np.abs(closed).max())
        np.testing.assert_allclose(sum(coefficients.predictor[i]), closed, rtol=0, atol=1e-10 * scale)


def test_one_step_to_the_end_keeps_ten_digits():
    (value,) = step_coefficients(PROCESS, 1e-3, 1.0, (1.0,))
    expected = PROCESS.factor(1e-3) - PROCESS.transition(1e-3, 1.0) @ PROCESS.factor(1.0)
    assert np.abs(value - expected).max() < 1e-9
    quadrature = by_adaptive_quadrature(PROCESS, 1e-3, 1.0, (1.0,), 0, "R")
    np.testing.assert_allclose(value, quadrature, rtol=1e-9)


def test_velocity_alone_drives_the_cholesky_coefficients():
    coefficients = gddim_coefficients(PROCESS, time_grid(PROCESS, 5), 2, "L")
    for step in coefficients.predictor:
        assert all(np.abs(matrix[:, 0]).max() <= 1e-14 * np.abs(matrix).max() for matrix in step)


def test_the_corrector_has_one_node_more_and_skips_the_last_step():
    coefficients = gddim_coefficients(PROCESS, time_grid(PROCESS, 5), 2, corrector="pec")
    assert [len(step) for step in coefficients.corrector] == [2, 3, 4, 4, 0]


def test_coefficients_are_kept_for_one_process_and_not_for_another():
    grid = time_grid(PROCESS, 4)
    first = gddim_coefficients(PROCESS, grid, 1)
    assert gddim_coefficients(CLD(), list(grid), 1) is first
    other = gddim_coefficients(CLD(CLDConfig(gamma=0.05)), grid, 1)
    assert np.abs(other.predictor[0][0] - first.predictor[0][0]).max() > 1e-6


# ---- stochastic steps ------------------------------------------------------------------------------------------------


def reverse_transition(process, t: float, s: float, lam: float) -> np.ndarray:
    contraction = process.contraction(t, s, lam)
    return process.factor(t) @ contraction @ np.linalg.inv(process.factor(s))


def test_stochastic_values():
    one = [[0.1678366091, -0.2551131446], [0.0665066590, -0.0918834276]]
    zero = [[-0.9750298131, 0.1256700764], [-0.0487760235, -0.9827984282]]
    np.testing.assert_allclose(reverse_transition(PROCESS, 0.4, 0.8, 1.0), one, rtol=0, atol=1e-9)
    np.testing.assert_allclose(reverse_transition(PROCESS, 0.4, 0.8, 0.0), zero, rtol=0, atol=1e-9)
    noise = noise_covariance(PROCESS, 0.4, 0.8, 1.0)
    expected = [[0.9099365821, -2.3443952e-4], [-2.3443952e-4, 0.2372854934]]
    np.testing.assert_allclose(noise, expected, rtol=0, atol=1e-9)
    assert np.abs(noise_covariance(PROCESS, 0.4, 0.8, 0.0)).max() == 0


@pytest.mark.parametrize("lam", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("process", [PROCESS, OTHER], ids=["published", "other"])
def test_reverse_transition_and_noise_solve_their_equations(process, lam):
    """dΨ̂/dτ = F̂Ψ̂ and dP/dτ = F̂P + PF̂ᵀ − λ²GGᵀ, integrated from s = 0.8 down to 0.4."""

    def rate(tau, flat):
        psi, noise = flat.reshape(2, 2, 2)
        diffusion = process.diffusion(tau)
        drift = process.drift(tau) + (1 + lam**2) / 2 * diffusion @ np.linalg.inv(process.covariance(tau))
        return np.stack([drift @ psi, drift @ noise + noise @ drift.T - lam**2 * diffusion]).ravel()

    start = np.stack([np.eye(2), np.zeros((2, 2))]).ravel()
    psi, noise = solve_ivp(rate, (0.8, 0.4), start, method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1].reshape(2, 2, 2)
    np.testing.assert_allclose(reverse_transition(process, 0.4, 0.8, lam), psi, rtol=0, atol=1e-8)
    np.testing.assert_allclose(noise_covariance(process, 0.4, 0.8, lam), noise, rtol=0, atol=1e-8)


def test_integration_meets_the_closed_form_of_the_ancestral_sampler():
    for t, s in [(0.4, 0.8), (1e-3, 0.02), (1e-3, 1.0)]:
        integrated = PROCESS._integrated_contraction(t, s, 1.0)
        np.testing.assert_allclose(integrated, PROCESS.contraction(t, s, 1.0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_noise_covariance_is_positive_and_what_the_marginal_lacks(lam):
    for t, s in [(0.4, 0.8), (1e-3, 0.02), (0.9, 1.0)]:
        noise = noise_covariance(PROCESS, t, s, lam)
        np.testing.assert_allclose(noise, noise.T, rtol=0, atol=1e-15)
        assert np.linalg.eigvalsh(noise).min() >= -1e-15
        psi = reverse_transition(PROCESS, t, s, lam)
        lacking = PROCESS.covariance(t) - psi @ PROCESS.covariance(s) @ psi.T
        np.testing.assert_allclose(noise, lacking, rtol=0, atol=1e-9)


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0, 2.0])
def test_variance_of_the_vp_case(lam):
    now, target = (float(VP.alpha(t)) for t in (600, 450))
    power = lam**2
    ratio = ((1 - target) / (1 - now)) ** power * (now / target) ** power
    expected = (1 - target) * (1 - ratio)
    assert noise_covariance(VP, 450, 600, lam).item() == pytest.approx(expected, rel=1e-10, abs=1e-15)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order=4"),
        ({"order": -1}, "order=-1"),
        ({"order": 1.5}, "order=1.5"),
        ({"order": 3, "grid": (1.0, 0.5, 0.1)}, "history of 4 intervals, the grid has 2"),
        ({"factor": "Q"}, "factor=Q"),
        ({"corrector": "pecec"}, "corrector=pecec"),
        ({"lam": -0.1}, "lambda=-0.1"),
        ({"lam": float("nan")}, "lambda=nan"),
        ({"lam": 0.5, "corrector": "pec", "order": 0}, "corrector=pec"),
        ({"lam": 0.5, "order": 1}, "order=1"),
        ({"lam": 0.5, "order": 0, "factor": "L"}, "factor=L"),
        ({"grid": (1.0,)}, "at least 2"),
        ({"grid": (0.5, 0.5)}, "must fall"),
        ({"grid": (0.5, float("nan"))}, "must fall"),
        ({"grid": (1.1, 0.5)}, "must lie"),
        ({"grid": (1.0, -0.1)}, "must lie"),
    ],
    ids=str,
)
def test_undefined_combinations_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        gddim_coefficients(PROCESS, **{"grid": time_grid(PROCESS, 5), "order": 2, **options})


def test_only_cld_has_a_second_factor():
    with pytest.raises(UserError, match="factor=L: use R"):
        gddim_coefficients(VP, (10, 5), 0, "L")


def test_other_predictions_than_the_noise_are_refused():
    with pytest.raises(UserError, match="mean_type"):
        ContinuousVP(DiffusionConfig(mean_type="xstart"))
