"""KID, density and coverage against direct computations."""

import numpy as np
import pytest
import torch

from ann2snn.errors import UserError
from ann2snn.metrics.density_coverage import density_coverage
from ann2snn.metrics.kid import kid, squared_mmd


def features(count: int, dim: int = 6, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)) + shift


def test_a_subset_s_value_is_the_sum_over_pairs():
    x, y = features(7), features(7, shift=0.5, seed=1)
    kernel = lambda a, b: (float(np.dot(a, b)) / 6 + 1) ** 3  # noqa: E731
    pairs = [(i, j) for i in range(7) for j in range(7)]
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / (7 * 6)
    expected = within - 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / 49
    assert squared_mmd(x, y) == pytest.approx(expected, rel=1e-12)
    draw, values = np.random.default_rng(4), []
    for _ in range(3):
        values.append(squared_mmd(x[draw.choice(7, 3, replace=False)], y[draw.choice(7, 3, replace=False)]))
    assert kid(x, y, subsets=3, seed=4) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values)), 3)


def test_kid_is_unbiased_and_sees_a_shift():
    same = kid(features(400), features(400, seed=1), subsets=50, subset_size=100)
    other = kid(features(400), torch.from_numpy(features(400, shift=1.0, seed=1)), subsets=50, subset_size=100)
    assert abs(same[0]) < 3 * same[1] and other[0] > 5 * other[1] > 0
    assert kid(features(400), features(400, seed=1), subsets=50, subset_size=100) == same


@pytest.mark.parametrize("other", [features(5, 4), features(1), np.full((5, 6), np.nan)], ids=["dim", "one", "nan"])
def test_kid_refuses(other):
    with pytest.raises(UserError, match="KID"):
        kid(features(5), other)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_density_and_coverage_are_the_published_ones(k):
    real, fake = features(60, 3), features(45, 3, shift=0.7, seed=1)
    distance = lambda a, b: np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))  # noqa: E731
    radii = np.sort(distance(real, real), axis=1)[:, k]
    near = distance(real, fake) < radii[:, None]
    got = density_coverage(real, fake, k, row_block=7, column_block=11)
    assert got == pytest.approx((near.sum(0).mean() / k, near.any(1).mean()), abs=1e-12)


def test_a_set_against_itself_has_density_and_coverage_one():
    real = features(50)
    assert density_coverage(real, real.copy(), 3) == pytest.approx((1.0, 1.0))
    assert density_coverage(real, real + 100, 3) == (0.0, 0.0)
