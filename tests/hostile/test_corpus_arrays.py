"""Statistics, images and rasters in npz files, and IDX files: refused in one line, before memory is taken."""

import gzip
import struct

import numpy as np
import pytest

from ann2snn.data.idx import read_idx
from ann2snn.errors import UserError
from ann2snn.files.npz import read_npz
from ann2snn.metrics.stats_file import read_stats
from ann2snn.run.rasters import load_rasters
from tests.hostile.contained import contained, refusal, sixteenths, tree
from tests.hostile.corpus import ARRAYS, lying_npz, npz_of, special_files, stats_arrays
from tests.report.run_folder import write_rasters

READERS = {"statistics": read_stats, "rasters": load_rasters}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.npz"


@pytest.mark.parametrize("name", ARRAYS)
def test_malicious_arrays_are_refused_by_every_reader(name, tmp_path, path):
    marker = tmp_path / "executed"
    ARRAYS[name](path, marker)
    before = tree(tmp_path)
    for reader in READERS.values():
        message = contained(lambda reader=reader: reader(path), memory=1 << 27)
        assert message and str(path) in message
    assert not marker.exists() and tree(tmp_path) == before


def test_the_command_in_the_corpus_is_live(tmp_path, path):
    marker = tmp_path / "executed"
    ARRAYS["command"](path, marker)
    with np.load(path, allow_pickle=True) as arrays:
        assert arrays["mu"] is not None
    assert marker.exists()


def test_valid_statistics_come_back_and_truncated_ones_are_refused_at_every_sixteenth(path):
    for save in (np.savez, np.savez_compressed):
        save(path, **stats_arrays())
        assert read_stats(path).count == 9
        for part in sixteenths(path.read_bytes()):
            path.write_bytes(part)
            assert "damaged" in refusal(lambda: read_stats(path))


def test_a_truncated_file_of_rasters_is_refused_at_every_sixteenth(path):
    write_rasters(path)
    assert len(load_rasters(path)) == 2
    for part in sixteenths(path.read_bytes()):
        path.write_bytes(part)
        assert "as spike rasters" in refusal(lambda: load_rasters(path))


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_plain_file_is_refused(name, tmp_path):
    for special in special_files(tmp_path / "special", ".npz").values():
        message = contained(lambda special=special: READERS[name](special), seconds=5)
        assert message and str(special) in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mu": np.zeros(2)}, "should be"),
        ({"mu": np.zeros(3, complex)}, "complex"),
        ({"sigma": np.full((3, 3), np.inf)}, "infinity"),
        ({"count": np.int64(-1)}, "count"),
        ({"extractor": np.str_("\x1b[31mred\n" * 1000)}, "net"),
    ],
)
def test_wrong_contents_are_refused_in_a_printable_line(changes, words, path):
    npz_of(path, **stats_arrays() | changes)
    assert words in contained(lambda: read_stats(path, "net"))


def test_an_array_is_not_allocated_before_its_header_is_believed(path):
    lying_npz(path, "a", (1 << 24,), data=bytes(8))
    with pytest.raises(ValueError, match="announces 134217"):
        read_npz(path, {"a": "f"}, 1 << 30)
    npz_of(path, a=np.zeros(1000))
    with pytest.raises(ValueError, match="more than 4000"):
        read_npz(path, {"a": "f"}, 4000)
    assert read_npz(path, {"b": "f"}, 10) == {}


def test_arrays_that_unfold_out_of_proportion_are_refused(path):
    np.savez_compressed(path, arr_0=np.zeros((1100, 1 << 9, 1 << 9, 1), np.uint8))  # 288 MB in 0.3

    def read() -> None:
        try:
            read_npz(path, {"arr_0": "u"}, 1 << 28)
        except ValueError as error:  # which its callers turn into the refusal that users see
            raise UserError(str(error)) from None

    assert "more than" in contained(read, memory=1 << 28)


IDX = b"\0\0\x08\x01" + struct.pack(">I", 8) + bytes(8)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_bounded(ending, tmp_path):
    def write(data: bytes):
        path = tmp_path / f"images-idx{ending}"
        path.write_bytes(gzip.compress(data) if ending else data)
        return path

    assert read_idx(write(IDX)).shape == (8,)
    huge = b"\0\0\x08\x04" + struct.pack(">4I", *[2**31] * 4)
    for data in (huge, *sixteenths(IDX), IDX + b"\0", b"\0\0\x08\x01" + struct.pack(">I", 1 << 28)):
        path = write(data)
        assert str(path) in contained(lambda path=path: read_idx(path), memory=1 << 28)
    for what, special in special_files(tmp_path / "special", ending).items():
        with pytest.raises(UserError):
            read_idx(special)
            pytest.fail(what)


def test_a_packed_bomb_in_an_idx_file_is_read_no_further_than_announced(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(IDX + bytes(1 << 27), 6))
    assert "does not hold" in contained(lambda: read_idx(path), memory=1 << 26)
