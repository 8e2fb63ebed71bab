import math

import numpy as np
import pytest
import torch

from ann2snn.errors import UserError
from ann2snn.metrics import precision_recall as module
from ann2snn.metrics.precision_recall import Manifold, manifold, precision_recall


def normal(seed, count, dim=16, dtype=torch.float32):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def distances(a, b):
    """Euclidean [N,M] by differences, one row at a time."""
    a, b = (np.asarray(value, dtype=np.float64) for value in (a, b))
    return np.stack([np.sqrt(((row - b) ** 2).sum(axis=1)) for row in a])


def brute_force(real, generated, k):
    """The definition: the radius is the (k+1)-th smallest distance within the set, the own 0 included."""

    def share(points, balls):
        radii = np.sort(distances(balls, balls), axis=1)[:, k]
        return (distances(points, balls) <= radii).any(axis=1).mean()

    return share(generated, real), share(real, generated)


def two_modes(seed, count, both):
    points = normal(seed, count)
    points[:, 0] += 10.0 * (torch.arange(count) % 2) if both else 0.0
    return points


# Balls around 0, 1, 3 and 7 on a line reach, at k = 1, to 1, 1, 2 and 4; at k = 2, to 3, 2, 3 and 6.
LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0]])


def test_radii_by_hand():
    assert manifold(LINE, k=1).squared_radii.tolist() == [1, 1, 4, 16]
    assert manifold(LINE, k=2).squared_radii.tolist() == [9, 4, 9, 36]
    assert manifold(LINE, k=3).squared_radii.tolist() == [49, 36, 16, 49]


@pytest.mark.parametrize(
    ("point", "inside"),
    [(-1.0, True), (math.nextafter(-1.0, -9), False), (11.0, True), (math.nextafter(11.0, 99), False)],
)
def test_the_surface_of_a_ball_belongs_to_it(point, inside):
    assert manifold(LINE, k=1).covers(torch.tensor([[point]], dtype=torch.float64)).tolist() == [inside]


def test_precision_and_recall_by_hand():
    # Balls of the generated set at k = 1: [-4, 4] and [0, 8] around 0 and 4, [4, 36] around 20. They hold every real
    # point; of the generated ones only 20 is outside the real balls, which end at 11.
    assert precision_recall(LINE, torch.tensor([[0.0], [4.0], [20.0]]), k=1) == (pytest.approx(2 / 3), 1.0)


def test_equal_features_are_neighbours_but_none_is_its_own():
    twins = torch.tensor([[5.0, 1.0], [5.0, 1.0], [9.0, 1.0]])
    assert manifold(twins, k=1).squared_radii.tolist() == [0, 0, 16]
    assert manifold(twins, k=2).squared_radii.tolist() == [16, 16, 16]
    covers = manifold(twins[:2], k=1).covers(torch.tensor([[5.0, 1.0], [5.0, 1.000001]]))
    assert covers.tolist() == [True, False]


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_equals_the_definition(k, offset):
    real, generated = normal(0, 150).double() + offset, 0.9 * normal(1, 130).double() + 0.2 + offset
    found = precision_recall(real, generated, k)
    assert found == pytest.approx(brute_force(real, generated, k), abs=1e-12)
    assert all(0.1 < value < 0.99 for value in found)  # a case in which something is decided


def test_published_synthetic_cases():
    real, generated = normal(0, 500), normal(1, 600)
    # One draw gave 0.8100 and 0.8033; the standard deviation between draws is 0.02.
    assert precision_recall(real, generated) == pytest.approx((0.81, 0.80), abs=0.06)
    assert precision_recall(real, real.clone()) == (1, 1)
    assert precision_recall(real, generated + 50) == (0, 0)
    precision, recall = precision_recall(two_modes(2, 500, both=True), two_modes(3, 600, both=False))
    assert precision > 0.7
    assert 0.3 < recall < 0.5  # the other mode's half is out of reach


def lattice(seed, count):
    """Small whole numbers: full of equal distances and of equal features."""
    return normal(seed, count, dim=3).round()


@pytest.mark.parametrize("make", [normal, lattice])
@pytest.mark.parametrize("blocks", [(1, 17), (7, 11), (100, 1000), (1000, 1)])
def test_blocks_do_not_matter(make, blocks):
    real, generated = make(0, 61), 2 * make(1, 83)
    found = precision_recall(real, generated, 3, *blocks)
    assert found == precision_recall(real, generated, 3)
    assert found == pytest.approx(brute_force(real, generated, 3), abs=1e-12)
    assert torch.equal(manifold(real, 3, *blocks).squared_radii, manifold(real, 3).squared_radii)


def test_ties_survive_rounding():
    # Each generated feature lies in a ball's surface: it equals the neighbour that sets the radius.
    real = normal(4, 40, dim=300) * 1e3 + 1e5
    balls = manifold(real, k=1)
    for index in range(len(real)):
        alone = Manifold(balls.features[index : index + 1], balls.squared_radii[index : index + 1])
        assert int(alone.covers(real).sum()) == 2  # its centre and its nearest neighbour


def test_every_pair_may_be_doubtful(monkeypatch):
    same, sizes, original = torch.full((30, 4), 0.1), [], module._exact_distances
    assert precision_recall(same, same + 1e-6) == (0, 0)
    balls = manifold(same)
    monkeypatch.setattr(module, "PAIR_VALUES", 12)
    monkeypatch.setattr(module, "_exact_distances", lambda a, b: sizes.append(a.numel()) or original(a, b))
    assert balls.covers(same).all()
    assert max(sizes) == 12  # few pairs at a time, though all 900 are undecided


def test_rough_distances_err_by_less_than_the_slack():
    a, b = normal(0, 50, 700, torch.float64) * 100, normal(1, 60, 700, torch.float64) * 100
    b[:20] = a[:20] + 1e-9 * b[:20]
    for origin in (torch.zeros(700, dtype=torch.float64), a[0]):
        rough, slack = module._rough_distances(a, b, origin)
        error = (rough - torch.from_numpy(distances(a, b) ** 2)).abs().max()
        assert 0 < error < slack < 1e-10 * rough.max()


def test_memory_is_bounded_by_the_blocks(monkeypatch):
    sizes, original = set(), module._rough_distances

    def recording(a, b, origin):
        sizes.add((len(a), len(b)))
        return original(a, b, origin)

    monkeypatch.setattr(module, "_rough_distances", recording)
    precision_recall(normal(0, 50), normal(1, 45), 3, 8, 16)
    assert max(rows for rows, _ in sizes) == 8
    assert max(columns for _, columns in sizes) == 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_narrow_features_count_as_the_values_they_hold(dtype):
    real, generated = normal(0, 120, dtype=dtype), normal(1, 100, dtype=dtype)
    wide = manifold(real.double())
    assert torch.equal(manifold(real).squared_radii, wide.squared_radii)
    assert precision_recall(real, generated) == precision_recall(wide, generated.double().numpy())


def test_float32_rounding_of_features_hardly_matters():
    real, generated = normal(0, 300, dtype=torch.float64), normal(1, 300, dtype=torch.float64)
    assert precision_recall(real.float(), generated.float()) == pytest.approx(
        precision_recall(real, generated), abs=2 / 300
    )


def test_swapping_the_sets_swaps_the_numbers():
    real, generated = normal(0, 150), 1.1 * normal(1, 120)
    assert precision_recall(real, generated) == precision_recall(generated, real)[::-1]


def test_more_neighbours_never_lower_either_number():
    real, generated = normal(0, 100), 1.2 * normal(1, 90)
    found = np.array([precision_recall(real, generated, k) for k in (1, 2, 3, 5, 8, 20, 89)])
    assert (np.diff(found, axis=0) >= 0).all()
    assert (found[0] < found[-1]).all()


def test_a_measured_manifold_stands_for_its_features():
    real, generated = normal(0, 80), normal(1, 70)
    expected = precision_recall(real, generated, 4)
    assert precision_recall(manifold(real, 4), generated, 4) == expected
    assert precision_recall(manifold(real, 4), manifold(generated, 4)) == expected


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite_are_refused(value):
    bad = normal(1, 20)
    bad[3, 5] = value
    for pair in ((bad, normal(0, 20)), (normal(0, 20), bad)):
        with pytest.raises(UserError, match="NaN"):
            precision_recall(*pair)
    with pytest.raises(UserError, match="NaN"):
        manifold(normal(0, 20)).covers(bad)


@pytest.mark.parametrize(
    ("k", "message"), [(20, "at least 21"), (30, "at least 31"), (0, "at least 1"), (2.5, "whole")]
)
def test_k_must_be_a_neighbour(k, message):
    with pytest.raises(UserError, match=message):
        precision_recall(normal(0, 40), normal(1, 20), k)


@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        (normal(0, 20), normal(1, 20, dim=15), "dimensions"),
        (normal(0, 20), normal(1, 20)[0], "expected"),
        (normal(0, 20), torch.ones(20, 16, dtype=torch.uint8), "float type"),
        (normal(0, 20), normal(1, 20)[:0], "expected"),
    ],
)
def test_sets_that_do_not_fit_are_refused(real, generated, message):
    for pair in ((real, generated), (generated, real)):
        with pytest.raises(UserError, match=message):
            precision_recall(*pair)


@pytest.mark.parametrize("blocks", [(0, 10), (10, -1)])
def test_empty_blocks_are_refused(blocks):
    with pytest.raises(UserError, match="blocks"):
        precision_recall(normal(0, 20), normal(1, 20), 3, *blocks)
