import os

import numpy as np
import pytest

from ann2snn.errors import UserError
from ann2snn.metrics.features import INCEPTION_NAME
from ann2snn.metrics.stats_file import read_stats, write_stats

MU = np.array([1.0, -2.0, 0.5])
SIGMA = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.1], [0.0, 0.1, 3.0]])


def _one_line_error(path, match, **kwargs):
    with pytest.raises(UserError, match=match) as caught:
        read_stats(path, **kwargs)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "stats.npz"
    write_stats(path, MU, SIGMA, 500, "net-a")
    return path


def test_round_trip_is_exact_and_leaves_no_temporary_file(written):
    stats = read_stats(written, expected_extractor="net-a", dim=3)
    np.testing.assert_array_equal(stats.mu, MU)
    np.testing.assert_array_equal(stats.sigma, SIGMA)
    assert (stats.count, stats.extractor, stats.dim) == (500, "net-a", 3)
    assert os.listdir(written.parent) == ["stats.npz"]


def test_overwriting_must_be_asked_for(written):
    with pytest.raises(UserError, match="exists"):
        write_stats(written, MU + 1, SIGMA, 500, "net-a")
    np.testing.assert_array_equal(read_stats(written).mu, MU)
    write_stats(written, MU + 1, SIGMA, 500, "net-a", overwrite=True)
    np.testing.assert_array_equal(read_stats(written).mu, MU + 1)


def test_a_write_that_breaks_off_leaves_the_old_file(written, monkeypatch):
    def broken(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(UserError, match="No space left"):
        write_stats(written, MU + 1, SIGMA, 500, "net-a", overwrite=True)
    assert os.listdir(written.parent) == ["stats.npz"]
    np.testing.assert_array_equal(read_stats(written).mu, MU)


@pytest.mark.parametrize(
    ("mu", "sigma", "count", "match"),
    [
        (MU, SIGMA[:2], 9, "should be"),
        (MU * np.nan, SIGMA, 9, "NaN"),
        (MU, SIGMA, 1, "count"),
        (MU, np.triu(SIGMA), 9, "asymmetric"),
    ],
)
def test_nothing_unusable_is_written(tmp_path, mu, sigma, count, match):
    with pytest.raises(UserError, match=match):
        write_stats(tmp_path / "a.npz", mu, sigma, count, "net-a")
    assert os.listdir(tmp_path) == []


def test_writing_into_no_folder_or_without_suffix(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        write_stats(tmp_path / "absent" / "a.npz", MU, SIGMA, 9, "net-a")
    with pytest.raises(UserError, match=".npz"):
        write_stats(tmp_path / "a.npy", MU, SIGMA, 9, "net-a")


def test_two_array_file_counts_as_inception(tmp_path):
    path = tmp_path / "cifar10.train.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
    stats = read_stats(path, expected_extractor=INCEPTION_NAME, dim=2048)
    assert (stats.count, stats.extractor) == (None, INCEPTION_NAME)
    assert stats.sigma.dtype == np.float64
    assert np.trace(stats.sigma) == 2048


def test_two_array_file_of_another_width_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", mu=MU, sigma=SIGMA)
    _one_line_error(tmp_path / "a.npz", "names no extractor")


def test_wrong_extractor_or_width(written):
    _one_line_error(written, "'net-a'.*'net-b'", expected_extractor="net-b")
    _one_line_error(written, "3 features, expected 5", dim=5)


def test_absent_truncated_and_foreign_files(written, tmp_path):
    _one_line_error(tmp_path / "absent.npz", "does not exist")
    whole = written.read_bytes()
    for size in (0, 40, len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut.npz").write_bytes(whole[:size])
        _one_line_error(tmp_path / "cut.npz", "damaged")
    (tmp_path / "text.npz").write_text("hello\n" * 100)
    _one_line_error(tmp_path / "text.npz", "damaged")
    with open(tmp_path / "plain.npz", "wb") as file:
        np.save(file, MU)
    _one_line_error(tmp_path / "plain.npz", "damaged")


class _Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB_FOLDER"],)


def test_pickles_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB_FOLDER", str(tmp_path / "exploded"))
    np.savez(tmp_path / "a.npz", mu=np.array([_Bomb()], dtype=object), sigma=SIGMA, count=9, extractor="net-a")
    _one_line_error(tmp_path / "a.npz", "damaged")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sigma": None}, "lacks mu or sigma"),
        ({"mu": MU[:2]}, "should be"),
        ({"mu": MU[None]}, "should be"),
        ({"sigma": SIGMA + np.inf}, "NaN or infinity"),
        ({"sigma": -SIGMA}, "no covariance"),
        ({"mu": np.array(["a", "b", "c"])}, "not numeric"),
        ({"count": 2.5}, "count"),
        ({"count": np.array([1, 2])}, "count"),
        ({"extractor": 7}, "extractor"),
    ],
)
def test_malformed_contents(tmp_path, changes, match):
    arrays = {"mu": MU, "sigma": SIGMA, "count": 9, "extractor": "net-a", **changes}
    np.savez(tmp_path / "a.npz", **{key: value for key, value in arrays.items() if value is not None})
    _one_line_error(tmp_path / "a.npz", match)
