"""Images survive the way to disk and back; damaged files are named."""

import numpy as np
import pytest
import torch
from PIL import Image

from ann2snn.errors import UserError
from ann2snn.generate.images import (
    ImageWriter,
    existing_indices,
    image_path,
    iter_folder,
    read_images,
    save_grid,
    save_npz,
    save_numbered,
    stale_npzs,
)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_png_round_trip_in_order(tmp_path, channels, batch_size):
    images = noise(7, channels, 5, 6)
    save_numbered(images[3:], tmp_path / "out", range(3, 7))
    save_numbered(images[:3], tmp_path / "out", range(len(images[:3])))
    read = list(iter_folder(tmp_path / "out", batch_size))
    assert all(len(batch) == batch_size for batch in read[:-1])
    assert torch.equal(torch.cat(read), images)


def test_files_are_named_by_index_and_nothing_else_remains(tmp_path):
    save_numbered(noise(2, 3, 4, 4), tmp_path, range(41, 43))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000041.png", "000042.png"]
    save_numbered(noise(1, 3, 4, 4), tmp_path, [999_999])
    assert existing_indices(tmp_path) == {41, 42, 999_999}


def test_existing_indices_knows_only_finished_files(tmp_path):
    for name in ("000001.png", ".000002.png.77.tmp", "grid.png", "3.png", "000004.jpg", "0000005.png"):
        (tmp_path / name).touch()
    assert existing_indices(tmp_path) == {1}
    assert existing_indices(tmp_path / "absent") == set()


@pytest.mark.parametrize("first_index", [-1, 999_999])
def test_indices_beyond_six_digits_are_refused(tmp_path, first_index):
    with pytest.raises(ValueError, match="six digits|6 digits"):
        save_numbered(noise(2, 1, 4, 4), tmp_path, range(first_index, first_index + 2))


def test_a_failed_write_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch):
    old = noise(1, 1, 4, 4)
    save_numbered(old, tmp_path, range(len(old)))

    def full(self, file, **_kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left"):
        save_numbered(255 - old, tmp_path, range(len(255 - old)))
    assert [path.name for path in tmp_path.iterdir()] == ["000000.png"]
    assert torch.equal(next(iter_folder(tmp_path, 1)), old)


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        save_grid(noise(1, 1, 4, 4), tmp_path / "file" / "grid.png", 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_holds_every_image_in_its_place(tmp_path, channels):
    images = noise(5, channels, 4, 6)
    save_grid(images, tmp_path / "new" / "grid.png", nrow=3)
    grid = torch.from_numpy(np.array(Image.open(tmp_path / "new" / "grid.png").convert("RGB"))).permute(2, 0, 1)
    assert grid.shape == (3, 2 * (4 + 2) + 2, 3 * (6 + 2) + 2)
    for i, image in enumerate(images):
        top, left = 2 + i // 3 * 6, 2 + i % 3 * 8
        assert torch.equal(grid[:, top : top + 4, left : left + 6], image.expand(3, 4, 6))


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_round_trip_from_tensor_and_folder(tmp_path, channels):
    images = noise(4, channels, 5, 6)
    save_npz(images, tmp_path / "a.npz")
    save_numbered(images, tmp_path / "out", range(len(images)))
    save_npz(tmp_path / "out", tmp_path / "b.npz")
    for name in ("a.npz", "b.npz"):
        with np.load(tmp_path / name) as arrays:
            assert arrays["arr_0"].dtype == np.uint8
            np.testing.assert_array_equal(arrays["arr_0"], images.permute(0, 2, 3, 1))


def test_an_npz_of_other_images_is_found_by_its_first_image_alone(tmp_path):
    images = noise(4, 1, 64, 64)
    save_npz(images, tmp_path / "out_4.npz")
    save_npz(255 - images[:3], tmp_path / "out_3.npz")
    content = bytearray((tmp_path / "out_3.npz").read_bytes())
    last = content.rindex((255 - images[2]).numpy().tobytes())
    content[last] ^= 1  # whoever reads the whole array is told of damage
    (tmp_path / "out_3.npz").write_bytes(content)
    save_npz(images[:1], tmp_path / "out_1.npz")
    (tmp_path / "out_2.npz").write_bytes(b"PK")
    assert stale_npzs(tmp_path / "out", images) == [tmp_path / "out_3.npz"]


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 3, 4, 4), noise(3, 4, 4), noise(1, 2, 4, 4), noise(1, 3, 4, 4)[:0]], ids=str
)
def test_what_is_no_image_batch_is_refused(tmp_path, images):
    for save in (
        lambda: save_grid(images, tmp_path / "x.png", 1),
        lambda: save_numbered(images, tmp_path, range(len(images))),
        lambda: save_npz(images, tmp_path / "x.npz"),
    ):
        with pytest.raises(ValueError, match="not uint8"):
            save()
    assert not list(tmp_path.iterdir())


def test_iter_folder_names_the_broken_and_the_odd_one(tmp_path):
    save_numbered(noise(3, 3, 8, 8), tmp_path, range(3))
    content = (tmp_path / "000001.png").read_bytes()
    (tmp_path / "000001.png").write_bytes(content[:-30])
    with pytest.raises(UserError, match=r"000001\.png"):
        list(iter_folder(tmp_path, 2))
    for odd in (noise(1, 3, 8, 9), noise(1, 1, 8, 8)):
        save_numbered(odd, tmp_path, range(1, 1 + len(odd)))
        with pytest.raises(UserError, match=r"000001\.png is .* where 000000\.png"):
            list(iter_folder(tmp_path, 2))


def test_iter_folder_checks_at_the_call(tmp_path):
    with pytest.raises(UserError, match="no image"):
        iter_folder(tmp_path, 2)
    with pytest.raises(ValueError, match="batch_size"):
        iter_folder(tmp_path, 0)


class Trap:
    """Notes that it was unpickled."""

    sprung = False

    def __setstate__(self, state):
        Trap.sprung = True


def test_a_writer_saves_what_it_was_given_and_says_what_went_wrong(tmp_path):
    images = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
    with ImageWriter(tmp_path) as writer:
        writer.add(images[:3], [4, 0, 2])
        writer.add(images[3:], [1, 3])
    order = [4, 0, 2, 1, 3]
    for image, index in zip(images, order, strict=True):
        assert torch.equal(read_images([image_path(tmp_path, index)], image_path(tmp_path, index))[0], image)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), ImageWriter(tmp_path / "file") as writer:
        writer.add(images, range(5))
    with pytest.raises(UserError, match="cannot write"), ImageWriter(tmp_path / "file") as writer:
        writer.add(images, range(5))
        writer.add(images, range(5))
    with pytest.raises(KeyboardInterrupt), ImageWriter(tmp_path / "late") as writer:
        writer.add(images, range(5))
        raise KeyboardInterrupt
    assert existing_indices(tmp_path / "late") == set(range(5)), "a batch that is being written is finished"


def test_a_batch_synchronizes_its_folder_once(tmp_path, monkeypatch):
    synchronized = []
    monkeypatch.setattr("ann2snn.generate.images.sync_folder", synchronized.append)
    monkeypatch.setattr("ann2snn.files.atomic.sync_folder", synchronized.append)
    with ImageWriter(tmp_path) as writer:
        writer.add(torch.zeros(7, 1, 4, 4, dtype=torch.uint8), range(7))
    assert synchronized == [tmp_path]
