"""Improved precision and recall: fidelity and coverage of generated images, from features.

Kynkaanniemi et al. 2019 (1904.06991). A set of features stands for the union of balls, one around each feature,
which reach to its k-th nearest neighbour within the set (eq. 1). Precision is the share of generated features in the
real set's union, recall the share of real features in the generated set's (eq. 2).
"""

from dataclasses import dataclass

import torch

from ..config import check_int
from ..errors import UserError

ROW_BLOCK, COLUMN_BLOCK = 2048, 4096
PAIR_VALUES = 2**22  # values held at once where single pairs are measured


@dataclass(frozen=True)
class Manifold:
    """The union of balls of a feature set: `features` [N,D] and `squared_radii` float64 [N], on one device."""

    features: torch.Tensor
    squared_radii: torch.Tensor

    def covers(self, points, row_block=ROW_BLOCK, column_block=COLUMN_BLOCK):
        """Tells which points lie in a ball, its surface included.

        Args:
            points: features [M,D], array or tensor.
            row_block, column_block: points and balls measured against each other at once.

        Returns:
            bool [M], on the manifold's device.

        Raises:
            UserError: as in `manifold`, and for points of another dimension.
        """
        points = self._fitting(points, row_block, column_block)
        covered = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        origin = _origin(self.features)
        for rows in _indices(points, row_block):
            for columns in _indices(self.features, column_block):
                uncovered = rows[~covered[rows]]
                if len(uncovered):
                    covered[uncovered] = self._covers_block(points[uncovered], columns, origin)
        return covered

    def occupants(self, points, row_block=ROW_BLOCK, column_block=COLUMN_BLOCK):
        """How many of the points [M,D] lie inside each ball, its surface left out: int64 [N]. Arguments as `covers`."""
        points = self._fitting(points, row_block, column_block)
        inside = torch.zeros(len(self.features), dtype=torch.int64, device=points.device)
        origin = _origin(self.features)
        for rows in _indices(points, row_block):
            for columns in _indices(self.features, column_block):
                distances, slack = _rough_distances(points[rows], self.features[columns], origin)
                excess = distances.sub_(self.squared_radii[columns])
                inside[columns] += (excess < -slack).sum(dim=0)
                for pairs in (excess.abs() <= slack).nonzero().split(max(1, PAIR_VALUES // points.shape[1])):
                    point, ball = rows[pairs[:, 0]], columns[pairs[:, 1]]
                    within = _exact_distances(points[point], self.features[ball]) < self.squared_radii[ball]
                    inside.index_add_(0, ball, within.long())
        return inside

    def _fitting(self, points, *blocks):
        points = _checked(points, "points").to(self.features.device)
        if points.shape[1] != self.features.shape[1]:
            dims = f"{points.shape[1]} and {self.features.shape[1]}"
            raise UserError(f"features have {dims} dimensions: take both sets from one extractor")
        _check_blocks(*blocks)
        return points

    def _covers_block(self, points, columns, origin):
        """bool [R]: which of the points [R,D] lie in one of the balls `columns`."""
        distances, slack = _rough_distances(points, self.features[columns], origin)
        excess = distances.sub_(self.squared_radii[columns])
        covered = (excess < -slack).any(dim=1)
        # Rounding can hide on which side a point of the surface lies. Only those pairs are worth the exact distance.
        doubtful = (excess <= slack) & ~covered[:, None]
        for pairs in doubtful.nonzero().split(max(1, PAIR_VALUES // points.shape[1])):
            row, column = pairs[:, 0], columns[pairs[:, 1]]
            inside = _exact_distances(points[row], self.features[column]) <= self.squared_radii[column]
            covered[row[inside]] = True
        return covered


def manifold(features, k=3, row_block=ROW_BLOCK, column_block=COLUMN_BLOCK):
    """Measures the radius of every feature's ball, the distance to its k-th nearest neighbour.

    A feature is not its own neighbour, but an equal feature at another index is, at distance 0.

    Distances are float64 whatever the type of the features. Neighbours are ranked by |a|^2 + |b|^2 - 2 ab, whose
    rounding can swap two if their squared distances differ by less than about D 1e-15 times the squared spread of the
    features. Radii and doubtful memberships are taken from a - b itself: ties stay ties, whatever the blocks.

    Args:
        features: [N,D], array or tensor of any float type, on the device that shall do the work.
        k: which neighbour; 3 in the paper.
        row_block, column_block: features measured against each other at once; memory grows with their product.

    Returns:
        A Manifold.

    Raises:
        UserError: wrong shape, NaN or infinity, k below 1, or not more than k features.
    """
    features = _checked(features, "features")
    k = check_int(k, "k")
    if k < 1:
        raise UserError(f"k={k}: precision and recall need at least 1 neighbour")
    if k >= len(features):
        raise UserError(f"k={k} neighbours need at least {k + 1} images in each set, got {len(features)}")
    _check_blocks(row_block, column_block)
    origin = _origin(features)
    radii = [_radii(features, rows, k, column_block, origin) for rows in _indices(features, row_block)]
    return Manifold(features, torch.cat(radii))


def precision_recall(real, generated, k=3, row_block=ROW_BLOCK, column_block=COLUMN_BLOCK):
    """Precision and recall of generated against real features.

    Args:
        real, generated: features [N,D] and [M,D]; either may be a Manifold, which saves measuring its radii again.
        k, row_block, column_block: as in `manifold`.

    Returns:
        (precision, recall), floats in [0, 1].

    Raises:
        UserError: as in `manifold`, and for sets of different dimension.
    """
    blocks = {"row_block": row_block, "column_block": column_block}
    real, generated = (
        features if isinstance(features, Manifold) else manifold(features, k, **blocks)
        for features in (real, generated)
    )
    precision = real.covers(generated.features, **blocks).double().mean()
    recall = generated.covers(real.features, **blocks).double().mean()
    return float(precision), float(recall)


def _radii(features, rows, k, column_block, origin):
    """Squared distance float64 [R] from each of the features `rows` to its k-th nearest neighbour."""
    nearest = torch.full((len(rows), k), torch.inf, dtype=torch.float64, device=features.device)
    index = torch.zeros((len(rows), k), dtype=torch.int64, device=features.device)
    for columns in _indices(features, column_block):
        distances, _ = _rough_distances(features[rows], features[columns], origin)
        distances[rows[:, None] == columns] = torch.inf
        best = distances.topk(min(k, len(columns)), dim=1, largest=False)
        nearest, index = torch.cat([nearest, best.values], dim=1), torch.cat([index, columns[best.indices]], dim=1)
        kept = nearest.topk(k, dim=1, largest=False)
        nearest, index = kept.values, index.gather(1, kept.indices)
    exact = [_exact_distances(features[rows], features[neighbour]) for neighbour in index.T]
    return torch.stack(exact).amax(dim=0)


def _rough_distances(a, b, origin):
    """Squared distances float64 [R,C] between a [R,D] and b [C,D] by one matrix product, and a bound on their error.

    Features are taken relative to `origin`, since a common offset would cost digits.
    """
    a, b = a.double() - origin, b.double() - origin
    squares_a, squares_b = a.square().sum(dim=1), b.square().sum(dim=1)
    distances = torch.addmm(squares_a[:, None] + squares_b, a, b.T, alpha=-2)
    # A sum of D products errs by at most D rounding units; twice that for the subtraction of the origin and the sums.
    unit = torch.finfo(torch.float64).eps
    slack = 2 * (a.shape[1] + 4) * unit * (squares_a.max() + squares_b.max())
    return distances, slack


def _exact_distances(a, b):
    """Squared distances float64 [P] of pairs: a [P,D], b [P,D]."""
    return (a.double() - b.double()).square().sum(dim=1)


def _origin(features):
    """Mean float64 [D], by parts: a float64 copy of all features could be too large."""
    return sum(part.double().sum(dim=0) for part in features.split(ROW_BLOCK)) / len(features)


def _indices(features, size):
    """Indices of the features in blocks of `size`, on their device."""
    return torch.arange(len(features), device=features.device).split(size)


def _check_blocks(*sizes):
    if min(sizes) < 1:
        raise UserError(f"blocks of {' x '.join(map(str, sizes))} distances: use sizes of at least 1")


def _checked(features, name):
    """Features as a tensor without gradient. Raises UserError if they are not finite [N,D] of a float type."""
    features = torch.as_tensor(features).detach()
    if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
        kind = f"{str(features.dtype).removeprefix('torch.')} {list(features.shape)}"
        raise UserError(f"{name} are {kind}, expected [N,D] of a float type: check the extractor")
    # Beyond 1e100, squares and their sums could overflow.
    if not all(bool((part.abs() < 1e100).all()) for part in features.split(ROW_BLOCK)):
        raise UserError(f"{name} hold NaN, infinity or values beyond 1e100: check the images and the extractor")
    return features
