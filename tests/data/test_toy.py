"""The planar point sets: their laws, their scale, and that a seed means the same points."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from ann2snn.data.toy import TOYS, toy_distance, toy_points
from ann2snn.errors import UserError

names = pytest.mark.parametrize("name", TOYS)


@names
def test_points_are_float32_of_unit_variance(name):
    points = toy_points(name, 100_000)
    assert points.shape == (100_000, 2) and points.dtype == torch.float32
    np.testing.assert_allclose(points.std(dim=0), (1, 1), rtol=0.01)


@names
def test_a_point_depends_on_seed_and_index_alone(name):
    torch.testing.assert_close(toy_points(name, 500, seed=3)[:20], toy_points(name, 20, seed=3), rtol=0, atol=0)
    assert not torch.equal(toy_points(name, 20, seed=3), toy_points(name, 20, seed=4))


def test_scales_of_the_laws():
    assert TOYS["gaussian8"].std == pytest.approx((1.41435, 1.41435), abs=1e-5)
    assert TOYS["gaussian25"].std == pytest.approx((2.82887, 2.82887), abs=1e-5)
    assert TOYS["rings"].std == pytest.approx((1.4717, 1.0198), abs=5e-5)
    assert TOYS["rings"].mean == pytest.approx((0, 0.15), abs=1e-12)


def test_scale_of_the_roll_is_the_integral_of_its_law():
    low, high = 1.5 * math.pi, 4.5 * math.pi
    for axis, wave in enumerate((math.cos, math.sin)):
        first, second = (
            quad(lambda a, p=p, wave=wave: (a * wave(a)) ** p, low, high)[0] / (high - low) for p in (1, 2)
        )
        assert TOYS["swissroll"].std[axis] == pytest.approx(math.sqrt(second - first**2 + 0.25**2), rel=1e-9)


@pytest.mark.parametrize(("name", "noise"), [("gaussian8", 0.0201), ("gaussian25", 0.0251)])
def test_points_lie_around_every_mode_alike(name, noise):
    points = toy_points(name, 50_000)
    scaled = toy_distance(name, points) / TOYS[name].std[0]
    assert float(scaled.square().mean().sqrt()) == pytest.approx(noise, abs=2e-4)
    modes, counts = np.unique(np.round(points.numpy() * TOYS[name].std[0] * 5), axis=0, return_counts=True)
    big = counts > 50_000 / 400
    assert len(modes) >= int(name.removeprefix("gaussian")) and counts[big].sum() > 0.9 * 50_000


def test_modes_are_equally_likely():
    points = toy_points("gaussian8", 40_000) * TOYS["gaussian8"].std[0]
    octant = torch.round(torch.atan2(points[:, 1], points[:, 0]) / (math.pi / 4)).long() % 8
    np.testing.assert_allclose(torch.bincount(octant, minlength=8) / 40_000, np.full(8, 1 / 8), atol=0.008)
    torch.testing.assert_close(points.norm(dim=1).mean(), torch.tensor(2.0), rtol=0, atol=1e-3)


def test_rings_are_unit_circles_of_known_width():
    points = toy_points("rings", 20_000)
    assert float(toy_distance("rings", points).square().mean().sqrt()) == pytest.approx(0.00447, rel=0.03)
    raw = points.double() * torch.tensor(TOYS["rings"].std) + torch.tensor(TOYS["rings"].mean)
    alone = raw[raw[:, 0] < -2.1]  # only the left ring reaches there
    np.testing.assert_allclose((alone - torch.tensor([-1.75, 0.75])).norm(dim=1), 1, atol=0.03)


def test_normal_noise_is_rarely_near_a_ring():
    noise = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0))
    assert float((toy_distance("rings", noise) < 0.1).float().mean()) == pytest.approx(0.256, abs=0.008)


def test_the_roll_is_a_spiral_of_growing_radius():
    points = toy_points("swissroll", 5000).double().numpy() * TOYS["swissroll"].std
    radius, angle = np.linalg.norm(points, axis=1), np.arctan2(points[:, 1], points[:, 0])
    turns = (radius - angle) / (2 * math.pi)
    assert np.abs(turns - np.round(turns)).std() < 0.06
    assert 1.5 * math.pi - 1.2 < radius.min() and radius.max() < 4.5 * math.pi + 1.2


def test_bad_requests_are_refused():
    with pytest.raises(UserError, match="moons: no such point set; use one of gaussian8"):
        toy_points("moons", 5)
    with pytest.raises(UserError, match="toy points"):
        toy_points("rings", -1)
    with pytest.raises(UserError, match="--seed"):
        toy_points("rings", 5, seed=-1)
    with pytest.raises(UserError, match="no closed form"):
        toy_distance("swissroll", torch.zeros(1, 2))
