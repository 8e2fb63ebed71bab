"""The IDX reader against torchvision's, and against damaged files."""

import gzip
import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from ann2snn.data.datasets import SHIPPED
from ann2snn.data.idx import read_idx, write_idx
from ann2snn.errors import UserError


@pytest.fixture
def real_fashion() -> Path:
    if "ANN2SNN_DATA" not in os.environ:
        pytest.skip("ANN2SNN_DATA is not set: no original Fashion-MNIST files")
    return Path(os.environ["ANN2SNN_DATA"], "fashion-mnist")


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (2, 3, 4, 3)])
def test_agrees_with_torchvision_on_the_same_bytes(tmp_path, shape):
    array = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_idx(array, tmp_path / "a.gz")
    (tmp_path / "a").write_bytes(gzip.decompress((tmp_path / "a.gz").read_bytes()))
    assert torch.equal(read_idx(tmp_path / "a.gz"), array)
    assert torch.equal(read_idx(tmp_path / "a"), array)
    if len(shape) <= 3:  # torchvision's limit
        assert torch.equal(read_sn3_pascalvincent_tensor(str(tmp_path / "a")), array)


def test_agrees_with_torchvision_on_real_files(tmp_path, real_fashion):
    for part in ("images-idx3", "labels-idx1"):
        packed = real_fashion / f"t10k-{part}-ubyte.gz"
        plain = tmp_path / part
        plain.write_bytes(gzip.decompress(packed.read_bytes()))
        assert torch.equal(read_idx(packed), read_sn3_pascalvincent_tensor(str(plain)))


def test_shipped_files_are_the_start_of_the_original(real_fashion):
    for part in ("images-idx3", "labels-idx1"):
        original = read_idx(real_fashion / f"train-{part}-ubyte.gz")
        assert torch.equal(read_idx(SHIPPED / f"{part}-ubyte.gz"), original[:10_000])


def test_writing_twice_gives_the_same_bytes(tmp_path):
    array = torch.arange(12, dtype=torch.uint8).view(3, 4)
    write_idx(array, tmp_path / "a.gz")
    write_idx(array, tmp_path / "b.gz")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert (tmp_path / "a.gz").read_bytes()[4:8] == bytes(4)  # gzip's time stamp


@pytest.mark.parametrize(
    "array", [torch.zeros(3), torch.zeros(0, dtype=torch.uint8), torch.zeros((), dtype=torch.uint8)]
)
def test_writer_refuses_what_it_cannot_express(tmp_path, array):
    with pytest.raises(ValueError, match="IDX"):
        write_idx(array, tmp_path / "a.gz")


HEADER = bytes([0, 0, 8, 1, 0, 0, 0, 4])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        HEADER[:6],
        HEADER + b"abc",  # short
        HEADER + b"abcde",  # long
        b"\1" + HEADER[1:] + b"abcd",  # magic
        bytes([0, 0, 13, 1, 0, 0, 0, 1]) + b"abcd",  # floats
        bytes([0, 0, 8, 0]) + b"abcd",  # no dimension
        bytes([0, 0, 8, 200]) + bytes(800),  # too many
        bytes([0, 0, 8, 1, 0, 0, 0, 0]),  # empty
        bytes([0, 0, 8, 2]) + b"\xff" * 8 + b"abcd",  # far too large
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_content_is_refused_by_name(tmp_path, content, packed):
    path = tmp_path / ("bad.gz" if packed else "bad")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match="bad"):
        read_idx(path)


def test_damaged_gzip_and_missing_file_are_refused(tmp_path):
    good = gzip.compress(HEADER + b"abcd")
    for name, content in {"cut.gz": good[:-9], "crc.gz": good[:-8] + bytes(8), "none.gz": b"not gzip"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_idx(tmp_path / name)
    with pytest.raises(UserError, match=r"missing\.gz"):
        read_idx(tmp_path / "missing.gz")


def test_a_lying_header_does_not_cost_memory(tmp_path):
    size = (200 * 2**20).to_bytes(4, "big")
    (tmp_path / "liar.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1]) + size + b"abcd"))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="does not hold"):
            read_idx(tmp_path / "liar.gz")
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()
