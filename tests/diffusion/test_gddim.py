"""gDDIM with exact scores: it recovers what it should, at the published rates, with the promised number of calls."""

import math

import numpy as np
import pytest
import torch

from ann2snn.config import DiffusionConfig
from ann2snn.data.toy import toy_distance, toy_points
from ann2snn.diffusion import VP, ImageNoise, sample_ddim
from ann2snn.diffusion.cld import CLD
from ann2snn.diffusion.continuous_vp import ContinuousVP
from ann2snn.diffusion.gddim import sample_euler, sample_gddim, with_label_scale
from ann2snn.diffusion.gddim_coefficients import time_grid
from ann2snn.diffusion.samplers import uniform_times
from ann2snn.errors import UserError
from tests.diffusion.exact import GaussianData, own_process, prior_rmse

PROCESS = CLD()
POINT, GAUSSIAN = GaussianData(PROCESS, 1.5), GaussianData(PROCESS, 0.5, 0.25)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(data: GaussianData, intervals: int, factor: str = "R", **options) -> float:
    """RMS over the prior of the sampled x to where the exact flow ends."""

    def sampler(u: torch.Tensor) -> torch.Tensor:
        grid = time_grid(PROCESS, intervals)
        return sample_gddim(data.net(factor), PROCESS, u, grid=grid, factor=factor, **options)

    return prior_rmse(PROCESS, sampler, lambda u: data.flow_end(u)[:, :1])


class Counter:
    """A stub network that records its calls and fails when it is not to be called."""

    def __init__(self, limit: int | None = None) -> None:
        self.times: list[float] = []
        self.limit = limit

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert self.limit is None or len(self.times) < self.limit, "called too often"
        assert t.shape == (len(x),) and t.dtype == x.dtype and (t == t[0]).all()
        self.times.append(float(t[0]))
        return 0.1 * x


# ---- one data point --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("intervals", [5, 10, 20, 50])
def test_one_point_is_recovered_exactly_with_r(intervals, order):
    assert error(POINT, intervals, order=order) < 1e-12


def test_one_step_recovers_a_point():
    assert error(POINT, 1, order=0) < 1e-9


def test_the_flow_ends_within_the_residual_noise_of_the_point():
    end = POINT.flow_end(PROCESS.prior(draws(20_000, 2)))[:, 0]
    assert float(end.mean()) == pytest.approx(1.49995, abs=5e-5)
    assert float(end.std()) == pytest.approx(0.00205, rel=0.03)


CHOLESKY = {
    0: {1: 2.7e4, 5: 1.1e4, 10: 1.9, 20: 8.9e-3, 50: 3.2e-3},
    1: {5: 7.2e4, 10: 2.7e2, 20: 1.9e-3, 50: 6.3e-4},
    2: {5: 1.3e5, 10: 1.6e4, 20: 12.5, 50: 2.6e-4},
    3: {5: 1.6e5, 10: 9.2e4, 20: 7.1e3, 50: 7.6e-3},
}


@pytest.mark.parametrize(("order", "intervals"), [(q, n) for q, row in CHOLESKY.items() for n in row])
def test_one_point_with_the_cholesky_factor_needs_many_steps(order, intervals):
    assert error(POINT, intervals, "L", order=order) == pytest.approx(CHOLESKY[order][intervals], rel=0.05)


@pytest.mark.parametrize(("intervals", "tolerance"), [(1, 5e-2), (5, 1e-6), (10, 1e-6), (20, 1e-6), (50, 1e-6)])
def test_single_precision_is_enough(intervals, tolerance):
    u = PROCESS.prior(draws(4000, 2))
    x = sample_gddim(POINT.net(), PROCESS, u.float(), steps=intervals, order=0)
    assert x.dtype == torch.float32
    assert float((x.double() - POINT.flow_end(u)[:, :1]).pow(2).mean().sqrt()) < tolerance


@pytest.mark.parametrize("intervals", [1, 5, 50])
def test_denoising_brings_a_point_closer(intervals):
    def sampler(u):
        return sample_gddim(POINT.net(), PROCESS, u, steps=intervals + 1, order=0, denoise=True)

    assert prior_rmse(PROCESS, sampler, lambda u: torch.full_like(u[:, :1], 1.5)) == pytest.approx(1.30e-3, abs=1e-5)


# ---- Gaussian data ---------------------------------------------------------------------------------------------------

GAUSSIAN_ERRORS = {
    "R": {
        0: {1: 0.501, 5: 0.349, 10: 0.222, 20: 0.134, 50: 0.0618},
        1: {5: 0.347, 10: 0.181, 20: 0.0785, 50: 0.0184},
        2: {5: 0.357, 10: 0.158, 20: 0.0496, 50: 0.00567},
        3: {5: 0.363, 10: 0.142, 20: 0.0331, 50: 0.00193},
    },
    "L": {
        0: {1: 2.7e4, 5: 7.1e3, 10: 13.5, 20: 1.25, 50: 0.485},
        1: {5: 3.0e4, 10: 16, 20: 0.273, 50: 0.0645},
        2: {5: 4.4e4, 10: 281, 20: 0.173, 50: 0.0301},
        3: {5: 4.9e4, 10: 1.2e3, 20: 30, 50: 0.0297},
    },
}


@pytest.mark.parametrize("factor", GAUSSIAN_ERRORS)
@pytest.mark.parametrize("order", range(4))
def test_gaussian_errors(factor, order):
    for intervals, expected in GAUSSIAN_ERRORS[factor][order].items():
        assert error(GAUSSIAN, intervals, factor, order=order) == pytest.approx(expected, rel=0.04), intervals


@pytest.mark.parametrize("order", range(4))
def test_the_predictor_converges_at_its_order(order):
    coarse, fine = error(GAUSSIAN, 100, order=order), error(GAUSSIAN, 200, order=order)
    assert order + 0.6 < math.log2(coarse / fine) < order + 1.6


def test_r_of_the_data_needs_one_step():
    """Prop. 4 of the paper: with R_0·R_0ᵀ the covariance of the data, the flow's noise prediction is constant."""
    own = own_process(GAUSSIAN)
    data = GaussianData(own, 0.5)

    def sampler(u):
        return sample_gddim(data.net(), own, u, steps=1, order=0)

    assert prior_rmse(PROCESS, sampler, lambda u: GAUSSIAN.flow_end(u)[:, :1]) < 1e-8


CORRECTED = {
    ("pec", 0): {20: 0.116, 50: 0.019},
    ("pece", 0): {10: 0.36, 20: 0.084, 50: 0.0127},
    ("pec", 2): {20: 0.73, 50: 0.0016},
    ("pece", 2): {10: 0.17, 20: 0.020, 50: 0.00073},
}


@pytest.mark.parametrize(("corrector", "order"), CORRECTED)
def test_corrector_errors(corrector, order):
    for intervals, expected in CORRECTED[corrector, order].items():
        actual = error(GAUSSIAN, intervals, order=order, corrector=corrector)
        assert actual == pytest.approx(expected, rel=0.06), intervals


def test_the_cheap_corrector_is_unstable_in_few_steps():
    assert error(GAUSSIAN, 10, order=0, corrector="pec") == pytest.approx(24, rel=0.05)
    assert error(GAUSSIAN, 10, order=2, corrector="pec") == pytest.approx(25, rel=0.05)


# ---- calls, times, hooks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corrector", ["none", "pec", "pece"])
@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("calls", [10, 20, 50])
def test_the_network_is_called_exactly_as_often_as_asked(calls, denoise, corrector):
    calls += corrector == "pece" and not denoise
    net = Counter(limit=calls)
    sample_gddim(net, PROCESS, draws(2, 2), steps=calls, corrector=corrector, denoise=denoise)
    assert len(net.times) == calls


def test_evaluation_times_are_the_grid_and_its_end_for_denoising():
    net, grid, seen = Counter(), time_grid(PROCESS, 9), []
    sample_gddim(net, PROCESS, draws(2, 2), steps=10, denoise=True, on_step=lambda t, state: seen.append((t, state)))
    assert net.times == list(grid)
    assert [t for t, _ in seen] == list(grid[:-1])
    torch.testing.assert_close(seen[0][1], draws(2, 2))


def test_correctors_look_ahead_to_the_next_time():
    grid = (1.0, 0.5, 0.2, 0.05)
    for corrector, times in [("pec", [1.0, 0.5, 0.2]), ("pece", [1.0, 0.5, 0.5, 0.2, 0.2])]:
        net = Counter()
        sample_gddim(net, PROCESS, draws(2, 2), grid=grid, order=1, corrector=corrector)
        assert net.times == times


def test_labels_can_be_scaled():
    net = Counter()
    sample_gddim(with_label_scale(net), PROCESS, draws(1, 2), grid=(1.0, 0.5, 0.001), order=0)
    assert net.times == pytest.approx([999, 499.5])


def test_image_states_are_sampled_pixel_by_pixel_like_points():
    images = draws(2, 6, 3, 3)
    x = sample_gddim(GAUSSIAN.net(), PROCESS, images, steps=6)
    assert x.shape == (2, 3, 3, 3)
    pair = images[1][[2, 5], 1, 2].unsqueeze(0)  # position and velocity of one pixel's third channel
    torch.testing.assert_close(x[1, 2, 1, 2], sample_gddim(GAUSSIAN.net(), PROCESS, pair, steps=6)[0, 0])
    clipped = sample_gddim(GAUSSIAN.net(), PROCESS, images, steps=6, clip=True)
    torch.testing.assert_close(clipped, x.clamp(-1, 1))


# ---- stochastic sampling ---------------------------------------------------------------------------------------------


class Draws:
    """Counting noise source."""

    def __repr__(self):  # part of a test's name, which must be the same in every process
        return "Draws"

    def __init__(self, *shape: int, seed: int = 7) -> None:
        self.shape, self.generator, self.count = shape, torch.Generator().manual_seed(seed), 0

    def __call__(self) -> torch.Tensor:
        self.count += 1
        return torch.randn(self.shape, generator=self.generator, dtype=torch.float64)


@pytest.mark.parametrize("intervals", [1, 5, 50])
def test_the_ancestral_sampler_draws_from_the_exact_law_of_a_point(intervals):
    noise = Draws(20_000, 2)
    u = PROCESS.prior(draws(20_000, 2))
    x = sample_gddim(POINT.net(), PROCESS, u, steps=intervals, order=0, lam=1.0, noise=noise, last_noise=True)
    assert float(x.mean()) == pytest.approx(1.5, abs=2e-4)
    assert float(x.std()) == pytest.approx(0.00204, rel=0.03)
    assert noise.count == intervals


@pytest.mark.parametrize("lam", [0.1, 0.5, 1.0])
def test_every_lambda_keeps_the_marginals(lam):
    count, grid = 40_000, (0.8, 0.5, 0.3)
    t = torch.full((count,), 0.8, dtype=torch.float64)
    u = PROCESS.diffuse(torch.full((count, 1), 1.5, dtype=torch.float64), t, draws(count, 2))
    states = []
    options = {"order": 0, "lam": lam, "noise": Draws(count, 2), "last_noise": True}
    sample_gddim(POINT.net(), PROCESS, u, grid=(*grid, 0.1), on_step=lambda t, u: states.append(u), **options)
    for time, state in zip(grid, states, strict=True):
        mean, covariance = POINT.law(time)
        np.testing.assert_allclose(state.mean(dim=0), mean, rtol=0, atol=0.02)
        np.testing.assert_allclose(np.cov(state.T.numpy()), covariance, rtol=0, atol=0.02)


def test_lambda_zero_draws_nothing_and_the_last_step_is_silent_by_default():
    def refuse():
        raise AssertionError("noise was drawn")

    u = draws(3, 2)
    with_source = sample_gddim(GAUSSIAN.net(), PROCESS, u, steps=5, order=0, noise=refuse)
    torch.testing.assert_close(with_source, sample_gddim(GAUSSIAN.net(), PROCESS, u, steps=5, order=0))
    noise = Draws(3, 2)
    sample_gddim(GAUSSIAN.net(), PROCESS, u, steps=5, order=0, lam=0.3, noise=noise)
    assert noise.count == 4


def test_small_lambda_approaches_the_deterministic_sampler():
    u = draws(3, 2)
    still = sample_gddim(GAUSSIAN.net(), PROCESS, u, steps=5, order=0)
    stirred = sample_gddim(GAUSSIAN.net(), PROCESS, u, steps=5, order=0, lam=1e-6, noise=Draws(3, 2))
    torch.testing.assert_close(stirred, still, rtol=0, atol=1e-4)


def test_an_image_does_not_depend_on_its_batch():
    def sample(indices):
        source = ImageNoise(3, indices, (2, 2, 2), "cpu", torch.float64)
        return sample_gddim(GAUSSIAN.net(), PROCESS, PROCESS.prior(source()), steps=5, order=0, lam=1.0, noise=source)

    together = sample([0, 1, 2])
    torch.testing.assert_close(torch.cat([sample([0]), sample([1, 2])]), together)


# ---- DDPM as a special case ------------------------------------------------------------------------------------------

DDPM = DiffusionConfig(diffusion_steps=100, beta_T=0.1)


def wavy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.sin(2 * x) + t.double().view(-1, 1, 1, 1) / 100


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_on_ddpm_it_is_ddim(lam):
    """λ = 0 is DDIM, λ = 1 is DDIM with η = 1. In between the two families differ, in mean and variance alike."""
    vp, path, x = VP(DDPM), ContinuousVP(DDPM), draws(2, 1, 3, 3)
    times = uniform_times(100, 7)
    ours = sample_gddim(
        wavy, path, x, grid=times, order=0, lam=lam, noise=Draws(2, 1, 3, 3), last_noise=True, denoise=True, clip=True
    )
    ddim = sample_ddim(wavy, vp, x, noise=Draws(2, 1, 3, 3), steps=7, eta=lam, clip=False)
    assert torch.allclose(ours, ddim, rtol=0, atol=1e-9) == (lam in (0.0, 1.0))


def test_ddpm_between_the_steps_meets_the_discrete_process():
    vp, path = VP(DDPM), ContinuousVP(DDPM)
    np.testing.assert_allclose(path.alpha(np.arange(100)), vp.alphas_bar, rtol=1e-12)
    h = 1e-4
    for t in (0.5, 30.2, 98.7):
        slope = (np.log(path.alpha(t + h)) - np.log(path.alpha(t - h))) / (2 * h)
        assert path.drift(t).item() == pytest.approx(slope / 2, rel=1e-6)
        rate = 2 * path.drift(t) * path.covariance(t) + path.diffusion(t)
        assert ((path.covariance(t + h) - path.covariance(t - h)) / (2 * h)).item() == pytest.approx(rate.item(), 1e-6)


def test_higher_degrees_sample_a_ddpm_more_accurately():
    path, x = ContinuousVP(DiffusionConfig()), torch.ones(1, 1, dtype=torch.float64)

    def spread(t: float) -> float:
        return math.sqrt(0.25 * float(path.alpha(t)) + 1 - float(path.alpha(t)))

    def net(x, t):
        return math.sqrt(1 - float(path.alpha(float(t[0])))) / spread(float(t[0])) ** 2 * x

    errors = [abs(float(sample_gddim(net, path, x, steps=20, order=q)) - spread(0) / spread(999)) for q in range(4)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 20 * errors[3]


# ---- Euler-Maruyama --------------------------------------------------------------------------------------------------

EULER = {1: 8.2, 5: 16, 10: 5.3, 20: 0.68, 50: 0.032}


@pytest.mark.parametrize("intervals", EULER)
def test_euler_errors_on_one_point(intervals):
    def sampler(u):
        return sample_euler(POINT.net(), PROCESS, u, steps=intervals, lam=0.0)

    actual = prior_rmse(PROCESS, sampler, lambda u: POINT.flow_end(u)[:, :1])
    assert actual == pytest.approx(EULER[intervals], rel=0.03)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0, 2.0])
def test_an_euler_maruyama_step_by_hand(lam):
    u, z, seen = draws(3, 2), draws(3, 2, seed=1), []
    options = {"lam": lam, "noise": lambda: z, "on_step": lambda t, state: seen.append(state)}
    sample_euler(GAUSSIAN.net(), PROCESS, u, grid=(0.9, 0.8, 0.7), **options)
    x, v = u.T
    t = torch.full((3,), 0.9, dtype=torch.float64)
    score = PROCESS.score(GAUSSIAN.net()(u, t), t)
    # beta = 4, 1/M = 4, Gamma = 1: F = [[0, 16], [-4, -16]], GG' = diag(0, 8), and the step is -0.1
    drift = -4 * x - 16 * v - (1 + lam**2) / 2 * 8 * score[:, 1]
    by_hand = torch.stack([x - 1.6 * v, v - 0.1 * drift + lam * math.sqrt(0.8) * z[:, 1]], dim=1)
    torch.testing.assert_close(seen[1], by_hand)


@pytest.mark.parametrize("lam", [pytest.param(0.5, marks=pytest.mark.slow), 1.0])
def test_euler_maruyama_keeps_the_marginals(lam):
    count, noise = 20_000, Draws(20_000, 2)
    t = torch.full((count,), 0.8, dtype=torch.float64)
    u = PROCESS.diffuse(torch.full((count, 1), 1.5, dtype=torch.float64), t, draws(count, 2))
    states = []
    grid = np.linspace(0.8, 0.2, 301)
    options = {"lam": lam, "noise": noise, "on_step": lambda t, u: states.append(u)}
    sample_euler(POINT.net(), PROCESS, u, grid=grid, **options)
    mean, covariance = POINT.law(grid[-2])
    np.testing.assert_allclose(states[-1].mean(dim=0), mean, rtol=0, atol=0.03)
    np.testing.assert_allclose(np.cov(states[-1].T.numpy()), covariance, rtol=0, atol=0.03)
    assert noise.count == 299


def test_euler_does_not_depend_on_the_factor():
    u = PROCESS.prior(draws(20, 2))
    options = {"steps": 9, "lam": 0.0, "denoise": True}
    r, lower = (sample_euler(GAUSSIAN.net(k), PROCESS, u, factor=k, **options) for k in ("R", "L"))
    torch.testing.assert_close(r, lower)


# ---- five rings ------------------------------------------------------------------------------------------------------


def empirical_net(points: torch.Tensor, factor: str):
    """ε of the mixture of the kernels around `points` [K, 2]."""
    at_rest = torch.cat([points, torch.zeros_like(points)], dim=1)

    def net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = float(t[0])
        means = PROCESS.apply(PROCESS.transition(time, 0.0), at_rest)
        precision = np.linalg.inv(PROCESS.covariance(time))
        whiten = np.linalg.cholesky(precision).T
        distances = torch.cdist(PROCESS.apply(whiten, u), PROCESS.apply(whiten, means)) ** 2
        nearest = torch.softmax(-distances / 2, dim=1) @ means
        return PROCESS.apply(PROCESS.factor(time, factor).T @ precision, u - nearest)

    return net


RINGS = {("R", 0, 10): 0.997, ("R", 0, 20): 1.0, ("L", 0, 10): 0.238, ("L", 0, 20): 0.998, ("L", 2, 20): 0.078}


@pytest.mark.parametrize(("factor", "order", "steps"), RINGS)
def test_share_of_samples_on_the_rings(factor, order, steps):
    points = toy_points("rings", 800, seed=1).double()
    u = PROCESS.prior(draws(2000, 4))
    x = sample_gddim(empirical_net(points, factor), PROCESS, u, steps=steps, order=order, factor=factor)
    share = float((toy_distance("rings", x) < 0.1).double().mean())
    assert share == pytest.approx(RINGS[factor, order, steps], abs=0.03)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3, "order": 3}, "history of 4"),
        ({"steps": 5, "lam": 0.5, "noise": Draws(2, 2)}, "order=2"),
        ({"steps": 5, "order": 0, "lam": 0.5}, "noise source"),
        ({"steps": 5, "order": 0, "lam": 0.5, "corrector": "pec", "noise": Draws(2, 2)}, "corrector=pec"),
        ({"steps": 6, "corrector": "pece"}, "odd number"),
        ({"steps": 1, "order": 0, "denoise": True}, "at least 2"),
        ({}, "either"),
        ({"steps": 5, "grid": (1.0, 0.5)}, "either"),
        ({"grid": (0.5, 1.0)}, "must fall"),
        ({"steps": 5, "power": 0.0}, "power"),
        ({"steps": 5, "factor": "Q"}, "factor=Q"),
    ],
    ids=str,
)
def test_bad_requests_stop_before_the_network_is_called(options, message):
    with pytest.raises(UserError, match=message):
        sample_gddim(Counter(limit=0), PROCESS, draws(2, 2), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5}, "noise source"),
        ({"steps": 5, "lam": -1.0}, "lambda=-1"),
        ({"steps": 5, "lam": 0.0, "factor": "Q"}, "factor=Q"),
        ({"lam": 0.0}, "either"),
    ],
    ids=str,
)
def test_bad_euler_requests_too(options, message):
    with pytest.raises(UserError, match=message):
        sample_euler(Counter(limit=0), PROCESS, draws(2, 2), **options)
