"""The pictures that evaluate.py draws of given seeds and images, and what it refuses."""

import pytest
import torch
from PIL import Image

import ann2snn
from ann2snn.checkpoints import checkpoint
from ann2snn.config import SampleConfig
from ann2snn.distributed.world import World
from ann2snn.generate.images import read_images, save_numbered
from ann2snn.run.folder import RunFolder
from ann2snn.stages import draw
from tests.helpers import assert_equal, random_ann
from tests.scripts import check, script
from tests.stages.test_bad_input import refused


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a network `net`, an image `000000.png` for it and a mask `mask.png`."""
    folder = tmp_path_factory.mktemp("drawings")
    net = random_ann(in_channels=1, image_size=8)
    ann2snn.save(net, folder / "net")
    save_numbered(ann2snn.sample(net, 1, steps=3, progress=False), folder, [0])
    Image.new("L", (8, 8), 0).save(folder / "dark.png")
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 4, 8))
    mask.save(folder / "mask.png")
    Image.new("L", (9, 8), 255).save(folder / "wide.png")
    return folder


def flags(place, *extra: str) -> list[str]:
    return [f"--eval_model_path={place}/net", f"--logdir={place}/run", "--sampler_steps=3", "--drawn_images=4", *extra]


def cells(path, count: int) -> torch.Tensor:
    """The first `count` images of a grid of 8-pixel images, two pixels apart."""
    picture = read_images([path], path)[0]
    return torch.stack([picture[:, 2:10, 2 + 10 * i : 10 + 10 * i] for i in range(count)])


@pytest.mark.parametrize(
    ("what", "rows"),
    [
        (["--interpolate=1,2"], 1),
        (["--start={}/000000.png", "--strength=0.5", "--seed=3"], 2),
        (["--start={}/000000.png", "--inpaint={}/mask.png", "--resamples=2"], 3),
        (["--start={}/000000.png", "--invert", "--invert_iterations=2"], 2),
    ],
    ids=["interpolate", "start", "inpaint", "invert"],
)
def test_a_command_draws_one_picture_and_says_where(place, what, rows):
    out = check(script("evaluate.py", *flags(place, *(word.format(place) for word in what))))
    path = place / "run" / out.split(": ")[0].split("/run/")[1]
    assert Image.open(path).size == (2 + 4 * 10, 2 + rows * 10)
    if rows == 1:
        expected = ann2snn.interpolate(ann2snn.load(place / "net"), 1, 2, 4, steps=3)
        assert_equal(cells(path, 4)[:, :1], expected)
    else:
        given = place / "000000.png"
        assert_equal(cells(path, 4)[:, :1], read_images([given] * 4, given))
    assert ("round trip: RMSE" in out) == ("--invert" in what)
    assert (place / "run" / "flagfile.evaluate.txt").exists()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (["--interpolate=1"], ["--interpolate=1", "two seeds"]),
        (["--interpolate=1,2,3"], ["two seeds"]),
        (["--interpolate=1,-2"], ["two seeds"]),
        (["--interpolate=1,2", "--invert"], ["one at a time"]),
        (["--interpolate=1,2", "--sampler=ddpm_strided"], ["--sampler=ddpm_strided", "draws noise"]),
        (["--start={}/nothing.png"], ["nothing.png"]),
        (["--start={}/wide.png"], ["wide.png", "9x8"]),
        (["--start={}/000000.png", "--strength=2"], ["--strength=2"]),
        (["--start={}/000000.png", "--inpaint={}/dark.png"], ["dark everywhere"]),
        (["--start={}/000000.png", "--inpaint={}/mask.png", "--sampler=ddim"], ["--sampler=ddim", "ddpm_strided"]),
        (["--start={}/000000.png", "--invert", "--sampler=dpmpp"], ["--sampler=dpmpp", "ddim"]),
        (["--interpolate=1,2", "--drawn_images=65"], ["--drawn_images=65"]),
        (["--interpolate=1_0,2"], ["two seeds"]),
        (["--interpolate=1,2", "--start={}/000000.png"], ["--start", "--interpolate"]),
        (["--interpolate=1,2", "--sample_only"], ["--interpolate and --sample_only", "one at a time"]),
        (["--start={}/000000.png", "--score={}"], ["--start", "--score"]),
        (["--interpolate=1,2", "--strength=0.2"], ["--strength=0.2", "--start"]),
        (["--start={}/000000.png", "--resamples=3"], ["--resamples=3", "--inpaint"]),
        (["--start={}/000000.png", "--invert_iterations=3"], ["--invert_iterations=3", "--invert"]),
        (["--start={}/000000.png", "--invert", "--strength=0.3"], ["--strength=0.3", "--invert"]),
        (["--start={}/000000.png", "--invert", "--eta=1"], ["--eta=1", "--invert"]),
        (["--start={}/000000.png", "--invert", "--clip_x0"], ["--clip_x0", "--invert"]),
        (["--start={}/000000.png", "--inpaint={}/mask.png", "--eta=0.5"], ["--eta=0.5", "--inpaint"]),
        (["--sample_only", "--sampler=ddim"], ["--drawn_images=4", "--interpolate"]),
        (["--interpolate=1,2", "--trajectory_images=3"], ["--trajectory_images=3", "--trajectory"]),
        (["--interpolate=1,2", "--against={}"], ["--against", "--score"]),
        (["--interpolate=1,2", "--export={}/new"], ["--export", "SNN_conversion.py"]),
        (["--interpolate=", "--sample_only"], ["--interpolate=: is empty"]),
        (["--start="], ["--start=: is empty"]),
        (["--interpolate=1,2", "--logdir="], ["--logdir=: is empty"]),
    ],
    ids=lambda what: " ".join(what).replace("{}", ""),
)
def test_what_does_not_fit_is_refused_in_a_line(place, tmp_path, what, words):
    done = script("evaluate.py", *flags(place), f"--logdir={tmp_path}", *(word.format(place) for word in what))
    refused(done, *words)
    assert not list(tmp_path.iterdir())


def test_a_picture_named_after_a_long_name_and_many_settings_can_be_written(place):
    """Refused by the file system, it would be lost after all of its sampling."""
    net = checkpoint.load(place / "net")
    canvas = draw.Canvas(RunFolder(place / "long"), net, SampleConfig("ddim", steps=3), World(torch.device("cpu")))
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    paths = {canvas.write(f"start_{'🖼' * 40}_{'9' * 70}{last}", [images]) for last in "ab"}
    assert len(paths) == 2 and all(path.exists() for path in paths)
