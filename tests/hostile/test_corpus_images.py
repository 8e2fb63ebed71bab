"""Folders of images from outside: whatever lies in them, one line names the file, and nothing waits or grows."""

import os
import sys

import pytest
from PIL import Image

from ann2snn.data import load_dataset
from ann2snn.data.decode import check_image, decode_image, list_images
from tests.hostile.contained import contained, refusal, sixteenths, tree
from tests.hostile.corpus import BROKEN_IMAGES, ESCAPE, ODD_IMAGES, encoded, profile_bomb, special_files
from tests.scripts import script, train_flags

KINDS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")


def read_folder(folder):
    return load_dataset("folder", folder, 8)


@pytest.mark.parametrize("name", BROKEN_IMAGES)
def test_a_broken_image_is_named(name, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(BROKEN_IMAGES[name]())
    before = tree(tmp_path)
    for read in (decode_image, lambda path: read_folder(path.parent)):
        message = contained(lambda read=read: read(path), memory=1 << 28)
        assert message and str(path) in message
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_the_first_picture_of_an_odd_file_is_read(name, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(ODD_IMAGES[name]())
    assert contained(lambda: decode_image(path), memory=1 << 28) is None
    assert contained(lambda: check_image(path), memory=1 << 28) is None
    assert decode_image(path).size == (8, 8)


def test_a_packed_colour_profile_does_not_unfold(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(profile_bomb())
    contained(lambda: decode_image(path), memory=1 << 27)  # refused or not, it fits


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_truncated_at_any_sixteenth_is_an_image_or_named(kind, tmp_path, capfd):
    path = tmp_path / f"x.{kind.lower()}"
    whole = encoded(kind, (64, 64))
    path.write_bytes(whole)
    assert refusal(lambda: decode_image(path)) is None
    refused = []
    for part in sixteenths(whole):
        path.write_bytes(part)
        refused.append(refusal(lambda: decode_image(path)))
    assert all(refused[:12]) and all(str(path) in message for message in refused if message)
    assert capfd.readouterr().err == ""  # decoders written in C speak for themselves otherwise


def test_what_is_no_plain_file_is_refused_or_passed_over(tmp_path):
    specials = special_files(tmp_path / "all", ".png")
    for what, special in specials.items():
        folder = tmp_path / what
        folder.mkdir()
        special.rename(folder / "x.png") if what != "loop" else (folder / "x.png").symlink_to(folder / "x.png")
        message = contained(lambda folder=folder: read_folder(folder), seconds=10)
        assert message and str(folder) in message, what


def test_links_in_circles_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").symlink_to(tmp_path)
    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    assert list_images(tmp_path) == [tmp_path / "x.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
@pytest.mark.parametrize("name", [ESCAPE.encode(), b"\xff\xfe", "‮gnp".encode(), b"a" * 240])
def test_names_come_back_printable(name, tmp_path):
    path = os.fsencode(tmp_path) + b"/" + name + b".png"
    with open(path, "wb") as file:
        file.write(b"broken")
    message = contained(lambda: read_folder(tmp_path))
    assert "cannot read image" in message and message.isprintable()


def test_the_script_names_a_pipe_and_a_name_that_is_a_terminal_command(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    flags = ["--dataset_type=folder", f"--data_dir={images}"]
    for name in ("pipe.png", f"{ESCAPE}.png"):
        os.mkfifo(images / name)
        done = script("ANN_train.py", *train_flags(tmp_path / "run", 2), *flags)
        assert done.returncode == 2 and done.stderr.startswith("error: cannot read image"), done.stderr[-500:]
        assert done.stderr.count("\n") == 1 and done.stderr[:-1].isprintable()
        (images / name).unlink()
    assert not (tmp_path / "run").exists()


def test_warnings_about_large_pictures_do_not_reach_the_terminal(tmp_path, capfd):
    path = tmp_path / "x.png"
    Image.new("L", (9000, 9000)).save(path)
    assert "pixels" in contained(lambda: decode_image(path))
    assert capfd.readouterr().err == ""
