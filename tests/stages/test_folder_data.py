"""Folders of pictures: how many are used, what is left out, and what a picture looks like."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from ann2snn.data import load_dataset
from ann2snn.data.decode import decode_image
from ann2snn.errors import UserError
from tests.scripts import check, script, train_flags
from tests.stages.test_bad_input import refused


def picture(path, size=(10, 8), seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def folder_flags(tmp_path):
    return [
        *train_flags(tmp_path / "run", 2),
        "--dataset_type=folder",
        f"--data_dir={tmp_path}/pictures",
        "--channels=1",
    ]


def test_a_training_says_how_many_images_it_has_and_what_is_left_out(tmp_path):
    for i in range(5):
        picture(tmp_path / f"pictures/{i}.png")
    for i, ending in enumerate(("gif", "GIF", "jfif", "avif", "txt")):
        (tmp_path / f"pictures/other{i}.{ending}").write_bytes(b"GIF89a")
    out = check(script("ANN_train.py", *folder_flags(tmp_path)))
    [line] = [line for line in out.splitlines() if line.startswith("data: ")]
    assert "5 images" in line and "1 .avif, 2 .gif, 1 .jfif" in line and "txt" not in line
    out = check(script("ANN_train.py", *train_flags(tmp_path / "shipped", 2)))
    assert "data: 8,000 images of fashion_mnist_10k (train), 8x8, grey\n" in out


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_train_beside_validation_is_refused(tmp_path, name):
    picture(tmp_path / "pictures/train/0.png")
    picture(tmp_path / f"pictures/{name}/0.png")
    refused(script("ANN_train.py", *folder_flags(tmp_path)), "--data_dir", f"rename {name} to test", "pictures/train")
    with pytest.raises(UserError, match=name):
        load_dataset("folder", tmp_path / "pictures", 8)
    assert len(load_dataset("folder", tmp_path / "pictures/train", 8)) == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_what_is_transparent_shows_white(tmp_path, mode, channels):
    path = tmp_path / "a.png"
    if mode == "P":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([200, 0, 0, 0, 0, 0])
        image.putpixel((1, 0), 1)
        image.save(path, transparency=0)
    else:
        pixels = np.zeros((1, 2, len(mode)), np.uint8)
        pixels[0, 0, 0], pixels[0, 1, -1] = 200, 255
        Image.fromarray(pixels, mode).save(path)
    decoded = np.asarray(decode_image(path, channels))
    assert (decoded[0, 0] == 255).all() and (decoded[0, 1] == 0).all()


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_camera_held_upright_takes_upright_pictures(tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = picture(tmp_path / "a.png", exif=exif)
    decoded = torch.from_numpy(np.array(decode_image(tmp_path / "a.png"))).permute(2, 0, 1)
    assert torch.equal(decoded, torch.rot90(stored, turns, (1, 2)))


def test_a_damaged_note_of_the_camera_spoils_no_picture(tmp_path):
    stored = picture(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert torch.equal(torch.from_numpy(np.array(decode_image(tmp_path / "a.png"))).permute(2, 0, 1), stored)
