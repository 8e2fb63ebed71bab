"""Files of reference statistics: our own `.npz`, and the two-array `.npz` that FID programs share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files.atomic import replacing
from ..files.npz import read_npz
from .features import INCEPTION_DIM, INCEPTION_NAME

MOST_BYTES = 1 << 28  # unpacked; 2048 features take 34 MB


@dataclass(frozen=True)
class ReferenceStatistics:
    """Mean and covariance of a set of images under one extractor.

    Attributes:
        mu: float64 [D].
        sigma: float64 [D,D].
        count: number of images, or None where the file does not say.
        extractor: the extractor's name.

    Raises:
        UserError: shapes do not fit, a value is not finite, or sigma is not symmetric with a diagonal of at least 0.
    """

    mu: np.ndarray
    sigma: np.ndarray
    count: int | None
    extractor: str

    def __post_init__(self):
        for name in ("mu", "sigma"):
            if np.asarray(getattr(self, name)).dtype.kind not in "fiu":
                raise UserError(f"{name} is not numeric: make the statistics anew")
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        dim = self.mu.size
        if dim == 0 or self.mu.shape != (dim,) or self.sigma.shape != (dim, dim):
            shapes = f"mu {list(self.mu.shape)} and sigma {list(self.sigma.shape)}"
            raise UserError(f"{shapes} should be [D] and [D,D]: make the statistics anew")
        if not (np.isfinite(self.mu).all() and np.isfinite(self.sigma).all()):
            raise UserError("mu or sigma holds NaN or infinity: make the statistics anew")
        # 1e-5 of the largest entry leaves room for files that were written in float32.
        slack = 1e-5 * np.abs(self.sigma).max()
        if np.abs(self.sigma - self.sigma.T).max() > slack or np.diagonal(self.sigma).min() < -slack:
            raise UserError("sigma is no covariance (asymmetric, or a negative variance): make the statistics anew")
        if self.count is not None and self.count < 2:
            raise UserError(f"count={self.count} must be at least 2: make the statistics anew")

    @property
    def dim(self):
        """D, the length of a feature vector."""
        return len(self.mu)


def write_stats(path, mu, sigma, count, extractor, overwrite=False):
    """Writes statistics to `path` in one step: the file is there whole or not at all.

    Args:
        path: target, ending in `.npz`; its folder must exist.
        mu, sigma: [D] and [D,D].
        count: number of images.
        extractor: the extractor's name.
        overwrite: replace a file that is already there.

    Raises:
        UserError: the values are not statistics, or the file exists, or it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"statistics file {path} must end in .npz: rename it")
    if path.exists() and not overwrite:
        raise UserError(f"statistics file {path} exists: choose another name, or allow overwriting")
    stats = ReferenceStatistics(mu, sigma, int(count), str(extractor))
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                mu=stats.mu,
                sigma=stats.sigma,
                count=np.int64(count),
                extractor=np.str_(stats.extractor),
            )
    except OSError as error:
        raise UserError(f"cannot write statistics file {path} ({error.strerror}): check folder and space") from error


def read_stats(path, expected_extractor=None, dim=None, unnamed=(INCEPTION_NAME, INCEPTION_DIM)):
    """Reads statistics: our `mu, sigma, count, extractor`, or `mu, sigma` alone as in `cifar10.train.npz`.

    A file without an extractor's name is taken to be of `unnamed`, by default the FID Inception with 2048 features.

    Args:
        path: the `.npz` file. Pickled contents are refused.
        expected_extractor: the name that the file must carry.
        dim: the number of features that it must have.
        unnamed: (name, features) of the extractor that a file without a name is of.

    Returns:
        ReferenceStatistics.

    Raises:
        UserError: the file is absent, damaged or of another extractor.
    """
    arrays = _read_arrays(Path(path))
    try:
        count, extractor = _labels(arrays, *unnamed)
        stats = ReferenceStatistics(arrays["mu"], arrays["sigma"], count, extractor)
    except UserError as error:
        raise UserError(f"statistics file {path}: {error}") from error
    if expected_extractor is not None and stats.extractor != expected_extractor:
        raise UserError(
            f"statistics file {path} is of extractor '{stats.extractor}', but the images are scored with "
            f"'{expected_extractor}': use a file or an extractor that matches"
        )
    if dim is not None and stats.dim != dim:
        raise UserError(f"statistics file {path} has {stats.dim} features, expected {dim}: use the matching extractor")
    return stats


def _read_arrays(path):
    if not path.is_file():
        raise UserError(f"statistics file {path} does not exist: check the path, or make the file from a data set")
    try:
        arrays = read_npz(path, dict.fromkeys(("mu", "sigma", "count", "extractor"), "fiuU"), MOST_BYTES)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"statistics file {path} is damaged, or no npz of plain arrays ({why}): make it anew") from None
    if "mu" not in arrays or "sigma" not in arrays:
        raise UserError(f"statistics file {path} lacks mu or sigma: make it anew, or check the path")
    return arrays


def _labels(arrays, usual, usual_dim):
    """(count or None, extractor's name) as read from a file."""
    if "extractor" not in arrays:
        if arrays["mu"].shape != (usual_dim,):
            shape = list(arrays["mu"].shape)
            raise UserError(f"names no extractor, and mu {shape} is not the [{usual_dim}] of {usual}: make it anew")
        extractor = usual
    elif arrays["extractor"].shape == () and arrays["extractor"].dtype.kind == "U":
        extractor = str(arrays["extractor"])
    else:
        raise UserError("extractor is not one string: make it anew")
    if "count" not in arrays:
        return None, extractor
    if arrays["count"].shape != () or arrays["count"].dtype.kind not in "iu":
        raise UserError("count is not one integer: make it anew")
    return int(arrays["count"]), extractor
