"""Power-function averages, against sums over all steps and numbers of the paper."""

import math

import numpy as np
import pytest

from ann2snn.diffusion.power_ema import (
    Profile,
    best_of,
    coefficients,
    gamma_of,
    power_decay_at,
    search,
)
from ann2snn.errors import UserError

STEPS = 2000


def sigma_rel_of(gamma: float) -> float:
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def weights(steps: int, sigma_rel: float) -> np.ndarray:
    """How much each of `steps` steps counts: the integral of the profile over (i − 1, i], without any recursion."""
    edges = (np.arange(steps + 1) / steps) ** (gamma_of(sigma_rel) + 1)
    return np.diff(edges)


def path(steps: int) -> np.ndarray:
    """Weights in training: a drift that slows down, a jump, and noise; [steps, 4], the last never moves."""
    time, noise = np.arange(1, steps + 1), np.random.default_rng(0).standard_normal(steps)
    return np.stack([np.log(time), noise, np.where(time > steps // 3, 5.0, -5.0), np.full(steps, 0.1)], axis=1)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_exponents_are_the_papers(sigma_rel, gamma):
    assert round(gamma_of(sigma_rel), 2) == gamma
    assert sigma_rel_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.2, 0.28])
def test_the_width_is_the_standard_deviation_of_the_profile(sigma_rel):
    share, middle = weights(20_000, sigma_rel), (np.arange(20_000) + 0.5) / 20_000
    mean = share @ middle
    assert math.sqrt(share @ (middle - mean) ** 2) == pytest.approx(sigma_rel, rel=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1])
def test_the_update_gives_the_average_over_all_steps_and_weights_of_sum_1(sigma_rel):
    tracked, shares = np.full(4, 1e300), np.zeros(STEPS)  # what it begins with does not count
    for step, now in enumerate(path(STEPS)):
        decay = power_decay_at(step, gamma_of(sigma_rel))
        tracked = decay * tracked + (1 - decay) * now
        shares = decay * shares
        shares[step] = 1 - decay
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(shares, weights(STEPS, sigma_rel), atol=1e-12)
    np.testing.assert_allclose(tracked, weights(STEPS, sigma_rel) @ path(STEPS), rtol=1e-10)


def kept_at(every: int, sigmas=(0.05, 0.1)) -> tuple[list[Profile], np.ndarray]:
    profiles = [Profile(sigma, step) for step in range(every, STEPS + 1, every) for sigma in sigmas]
    averages = [weights(p.step, p.sigma_rel) @ path(STEPS)[: p.step] for p in profiles]
    return profiles, np.array(averages)


@pytest.mark.parametrize("wanted", [0.02, 0.05, 0.07, 0.1, 0.15, 0.25])
def test_an_average_built_from_snapshots_is_the_tracked_one_within_the_distance_of_the_profiles(wanted):
    profiles, averages = kept_at(STEPS // 50)
    found, distance = coefficients(profiles, Profile(wanted, STEPS))
    tracked = weights(STEPS, wanted) @ path(STEPS)
    norm = math.sqrt((gamma_of(wanted) + 1) ** 2 / (2 * gamma_of(wanted) + 1) / STEPS)  # of the wanted profile
    bound = distance * norm * np.sqrt((path(STEPS) ** 2).sum(axis=0))  # Cauchy and Schwarz
    assert (np.abs(found @ averages - tracked) <= bound + 1e-8).all()
    assert distance < (0.2 if wanted < 0.03 else 0.02)
    assert found.sum() == pytest.approx(1, abs=1e-9)
    assert (found @ averages)[3] == pytest.approx(0.1, rel=1e-12)  # what never moved
    assert np.abs(found).sum() < 100  # so that the float32 of the snapshots does


def test_a_kept_average_is_built_of_itself_alone():
    profiles, _ = kept_at(STEPS // 8)
    found, distance = coefficients(profiles, profiles[-1])
    np.testing.assert_allclose(found, np.eye(len(profiles))[-1], atol=1e-7)
    assert distance < 1e-7


def test_more_snapshots_come_closer():
    distances = [coefficients(kept_at(STEPS // n)[0], Profile(0.03, STEPS))[1] for n in (4, 8, 16, 40)]
    assert distances == sorted(distances, reverse=True) and distances[-1] < distances[0] / 4


def test_a_search_finds_the_width_of_the_lowest_figure():
    asked = []

    def figure(width: float) -> float:
        asked.append(width)
        if width < 0.011 or width > 0.2:
            return math.nan if width < 0.011 else -math.inf
        return math.log(width / 0.06) ** 2

    found = search(figure)
    assert list(found) == sorted(asked) and len(set(asked)) == len(asked) <= 12
    assert best_of(found) == min(found, key=found.get) and 0.05 < best_of(found) < 0.07
    assert found[0.01] == found[0.25] == math.inf  # no number would be: min() takes the first of those


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_search_without_any_figure_is_refused(value):
    with pytest.raises(UserError, match="no width has a finite figure"):
        search(lambda width: value)


@pytest.mark.parametrize("value", [0, -0.1, 0.3, math.nan, "0.1", None])
def test_widths_that_no_average_has_are_refused(value):
    with pytest.raises(UserError, match="--sigma_rel="):
        gamma_of(value)
