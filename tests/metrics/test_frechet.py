import numpy as np
import pytest
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from scipy import linalg

from ann2snn.errors import UserError
from ann2snn.metrics.frechet import FeatureStatistics, frechet_distance
from tests.metrics.ranks import over_ranks

DIM = 24


def _features(seed, count, dim=DIM, offset=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim) + offset


def _moments(features):
    return features.mean(axis=0), np.cov(features, rowvar=False)


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_statistics_equal_numpy_over_uneven_batches(offset):
    features = _features(0, 101, offset=offset)
    statistics = FeatureStatistics(DIM)
    for part in np.split(features, [1, 40, 40, 97]):
        statistics.update(torch.from_numpy(part))
    mu, sigma, count = statistics.compute()
    expected_mu, expected_sigma = _moments(features)
    assert count == 101
    np.testing.assert_allclose(mu, expected_mu, rtol=1e-12)
    np.testing.assert_allclose(sigma, expected_sigma, atol=1e-10 * np.abs(expected_sigma).max())


def test_ranks_together_equal_one_process_and_stay_as_they_are():
    features = _features(1, 60, offset=100.0)
    ranks = [FeatureStatistics(DIM) for _ in range(4)]
    for rank, part in zip(ranks, (features[:0], features[:7], features[7:8], features[8:]), strict=True):
        rank.update(part)
    before = ranks[3].scatter.copy()
    for whole in over_ranks(ranks, FeatureStatistics.reduced_over):
        mu, sigma, count = whole.compute()
        assert count == 60
        np.testing.assert_allclose(mu, features.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(sigma, np.cov(features, rowvar=False), atol=1e-9)
    np.testing.assert_array_equal(ranks[3].scatter, before)


def test_float32_features_are_summed_in_float64():
    features = (_features(2, 3000) + 1000).astype(np.float32)
    statistics = FeatureStatistics(DIM)
    for part in np.array_split(features, 30):
        statistics.update(torch.from_numpy(part))
    np.testing.assert_allclose(statistics.compute()[1], np.cov(features.astype(np.float64), rowvar=False), atol=1e-9)


def test_statistics_refuse_what_they_cannot_use():
    statistics = FeatureStatistics(3)
    statistics.update(np.ones((1, 3)))
    with pytest.raises(UserError, match="at least 2"):
        statistics.compute()
    with pytest.raises(UserError, match=r"\[2, 4\]"):
        statistics.update(np.ones((2, 4)))
    with pytest.raises(UserError, match="NaN"):
        statistics.update(np.array([[0.0, np.nan, 0.0]]))
    assert statistics.count == 1


# pytorch-fid passes sqrtm an argument that SciPy is about to drop.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_distance_equals_matrix_square_root_and_pytorch_fid():
    (mu1, sigma1), (mu2, sigma2) = _moments(_features(3, 200)), _moments(_features(4, 300))
    root = linalg.sqrtm(sigma1 @ sigma2)
    expected = np.sum((mu1 - mu2) ** 2) + np.trace(sigma1 + sigma2 - 2 * root.real)
    got = frechet_distance(mu1, sigma1, mu2, sigma2)
    assert got == pytest.approx(expected, rel=1e-10)
    assert got == pytest.approx(calculate_frechet_distance(mu1, sigma1, mu2, sigma2), rel=1e-10)


def test_distance_of_diagonal_gaussians_has_its_closed_form():
    mu1, mu2 = np.array([0.0, 1.0, -2.0]), np.array([1.0, 1.0, 2.0])
    s1, s2 = np.array([1.0, 4.0, 0.0]), np.array([9.0, 0.25, 2.0])  # standard deviations
    expected = np.sum((mu1 - mu2) ** 2) + np.sum((s1 - s2) ** 2)
    assert frechet_distance(mu1, np.diag(s1**2), mu2, np.diag(s2**2)) == pytest.approx(expected, rel=1e-12)


def test_distance_known_values_in_three_dimensions():
    eye, zero = np.eye(3), np.zeros(3)
    assert frechet_distance(zero, eye, np.ones(3), eye) == pytest.approx(3.0, abs=1e-12)
    assert frechet_distance(zero, 4 * eye, zero, eye) == pytest.approx(3.0, abs=1e-12)


@pytest.mark.parametrize("count", [200, 10])  # 10 images of 24 features: rank 9
def test_distance_is_zero_on_itself_and_symmetric(count):
    one, two = _moments(_features(5, count)), _moments(_features(6, count))
    assert frechet_distance(*one, *one) <= 1e-11 * np.trace(one[1])
    forward, backward = frechet_distance(*one, *two), frechet_distance(*two, *one)
    assert forward > 1.0
    assert forward == pytest.approx(backward, rel=1e-12)


def test_rank_deficient_covariances_agree_with_their_subspace():
    """Both Gaussians live in one 5-dimensional subspace of 200: the distance is that of the subspace."""
    rng = np.random.default_rng(7)
    basis = np.linalg.qr(rng.normal(size=(200, 5)))[0]
    (mu1, sigma1), (mu2, sigma2) = _moments(_features(8, 50, dim=5)), _moments(_features(9, 50, dim=5))
    got = frechet_distance(basis @ mu1, basis @ sigma1 @ basis.T, basis @ mu2, basis @ sigma2 @ basis.T)
    assert got == pytest.approx(frechet_distance(mu1, sigma1, mu2, sigma2), rel=1e-10)


def test_null_directions_add_nothing_against_a_full_covariance():
    """Against the identity, which commutes with all, tr sqrt(S1 S2) is the sum of the roots of S1's eigenvalues."""
    variances = np.array([5.0, 3.0, 2.0, 1.0, 0.5])
    basis = np.linalg.qr(np.random.default_rng(10).normal(size=(200, 5)))[0]
    zero, deficient = np.zeros(200), basis @ np.diag(variances) @ basis.T
    expected = variances.sum() + 200 - 2 * np.sqrt(variances).sum()
    assert frechet_distance(zero, deficient, zero, np.eye(200)) == pytest.approx(expected, rel=1e-12)


def test_distance_refuses_misfits_and_matrices_that_are_no_covariance():
    eye, zero = np.eye(2), np.zeros(2)
    with pytest.raises(UserError, match="do not fit"):
        frechet_distance(zero, eye, np.zeros(3), np.eye(3))
    with pytest.raises(UserError, match="negative eigenvalue"):
        frechet_distance(zero, eye, zero, np.diag([1.0, -1.0]))
    with pytest.raises(UserError, match="NaN"):
        frechet_distance(zero, eye, zero, eye * np.nan)


def test_distance_survives_a_decomposition_that_does_not_converge(monkeypatch):
    """Seen on a covariance of 4 images in 1,280 dimensions, with one number of threads and not with another."""
    rng = np.random.default_rng(0)
    a, b = (np.cov(rng.normal(size=(4, 30)), rowvar=False) for _ in range(2))
    expected = frechet_distance(np.zeros(30), a, np.ones(30), b)

    def fail(*args):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    assert frechet_distance(np.zeros(30), a, np.ones(30), b) == pytest.approx(expected, rel=1e-9)
