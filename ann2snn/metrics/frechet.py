"""Mean and covariance of features, gathered batch by batch, and the Frechet distance between two such Gaussians."""

import numpy as np
import torch

from ..errors import UserError


class FeatureStatistics:
    """Running mean and covariance of feature vectors in float64.

    Holds `count`, `mean` [D] and `scatter` [D,D] = sum of (x - mean)(x - mean)^T. Batches and ranks are joined by the
    pairwise update of Chan, Golub and LeVeque (1983, "Algorithms for computing the sample variance", eq. 2.1): raw sums
    of x x^T would lose the digits that a large mean occupies.

    Args:
        dim: D, the length of a feature vector.
    """

    def __init__(self, dim):
        self.dim = int(dim)
        self.count = 0
        self.mean = np.zeros(self.dim)
        self.scatter = np.zeros((self.dim, self.dim))

    def update(self, features):
        """Adds a batch of features [N,D] (array or tensor, any float type; N may be 0).

        Raises:
            UserError: wrong shape, or a value is not finite.
        """
        features = _as_float64(features)
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise UserError(f"features have shape {list(features.shape)}, expected [N,{self.dim}]: check the extractor")
        if not np.isfinite(features).all():
            raise UserError("features hold NaN or infinity: check the images and the extractor's weights")
        if len(features) == 0:
            return
        mean = features.mean(axis=0)
        centred = features - mean
        self._join(len(features), mean, centred.T @ centred)

    def reduced_over(self, world):
        """The statistics of what all processes of `world` have gathered; a new object, the same on each."""
        if world.size == 1:
            return self
        total = FeatureStatistics(self.dim)
        total.count = int(world.sum(torch.tensor(self.count)))
        if total.count:
            mean = torch.from_numpy(self.mean)
            total.mean = (world.sum(mean * self.count) / total.count).numpy()
            shift = self.mean - total.mean  # about the common mean, so that no digits of a large one are lost
            scatter = self.scatter + self.count * np.outer(shift, shift)
            total.scatter = world.sum(torch.from_numpy(scatter)).numpy()
        return total

    def compute(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns mu [D], sigma [D,D] (unbiased: divided by count - 1, as np.cov does) and count.

        Raises:
            UserError: fewer than two vectors, which have no covariance.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, got {self.count}: score more images")
        return self.mean.copy(), self.scatter / (self.count - 1), self.count

    def _join(self, count, mean, scatter):
        total = self.count + count
        delta = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(delta, delta * (self.count * count / total))
        self.mean = self.mean + delta * (count / total)
        self.count = total


def frechet_distance(mu1, sigma1, mu2, sigma2):
    """Squared Frechet distance between two Gaussians; on Inception features this is the FID.

    |mu1 - mu2|^2 + tr(sigma1) + tr(sigma2) - 2 tr((sigma1 sigma2)^(1/2))      Heusel et al. 2017 (1706.08500), eq. 6

    The last trace equals tr((S1^(1/2) S2 S1^(1/2))^(1/2)), the sum of the singular values of S1^(1/2) S2^(1/2). Each
    root comes from a symmetric eigendecomposition reduced to the covariance's numerical rank, so that null directions
    (fewer images than features) add nothing: the square root of a rounding error would be a large error.

    Args:
        mu1, mu2: means [D].
        sigma1, sigma2: covariances [D,D].

    Returns:
        The distance as a float; it is never negative (rounding below zero is cut off).

    Raises:
        UserError: shapes do not fit, a value is not finite, or a matrix is not a covariance.
    """
    mu1, mu2, sigma1, sigma2 = (_as_float64(value) for value in (mu1, mu2, sigma1, sigma2))
    dim = mu1.size
    if mu1.shape != (dim,) or mu2.shape != (dim,) or sigma1.shape != (dim, dim) or sigma2.shape != (dim, dim):
        shapes = ", ".join(str(list(value.shape)) for value in (mu1, sigma1, mu2, sigma2))
        raise UserError(f"statistics do not fit together (shapes {shapes}): make both with the same extractor")
    if not all(np.isfinite(value).all() for value in (mu1, mu2, sigma1, sigma2)):
        raise UserError("statistics hold NaN or infinity: make them anew")
    # torch's decompositions, not numpy's: they keep to --num_threads, and many processes do not fight for the cores.
    singular_values = torch.linalg.svdvals(_root_factor(sigma1).T @ _root_factor(sigma2)).numpy()
    shift = mu1 - mu2
    distance = shift @ shift + np.trace(sigma1) + np.trace(sigma2) - 2.0 * singular_values.sum()
    return max(float(distance), 0.0)


def _root_factor(sigma):
    """F, a tensor [D,R], with F F^T = sigma, where R is sigma's numerical rank."""
    symmetric = (sigma + sigma.T) / 2
    try:
        eigenvalues, vectors = torch.linalg.eigh(torch.from_numpy(symmetric))
    except torch.linalg.LinAlgError:  # does not converge on some covariances of rank far below D; numpy's does
        eigenvalues, vectors = map(torch.from_numpy, np.linalg.eigh(symmetric))
    largest = eigenvalues.abs().max()
    # Statistics may have been stored in float32, whose rounding reaches about 1e-7 of the largest eigenvalue.
    if eigenvalues[0] < -1e-5 * largest:
        raise UserError(f"covariance has the negative eigenvalue {eigenvalues[0]:.3g}: make the statistics anew")
    # eigh's own error is a few ulp of the largest eigenvalue; nothing below that is information.
    kept = eigenvalues > len(sigma) * np.finfo(np.float64).eps * largest
    return vectors[:, kept] * eigenvalues[kept].sqrt()


def _as_float64(value):
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)
