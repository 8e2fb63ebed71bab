"""`evaluate.py --score A --against B`: any images with any others."""

import numpy as np
import pytest
import torch

import ann2snn
from ann2snn.generate.images import save_npz, save_numbered
from tests.scripts import check, script
from tests.stages.test_bad_input import refused

LITE = ["--extractor=lite0", "--lite0_size=32", "--device=cpu", "--num_threads=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 1, 8, 8), generator=generator, dtype=torch.uint8)
    save_numbered(images, folder / "images", range(len(images)))
    save_numbered(images[:2], folder / "few", range(2))
    save_npz(images, folder / "images.npz")
    save_npz(images // 2, folder / "dark.npz")
    np.savez(folder / "other.npz", arr_0=np.zeros((3, 8, 8), np.uint8))
    (folder / "text.npz").write_text("nothing")
    return folder


def figures(out: str) -> dict[str, float]:
    pairs = [part.rsplit(" ", 1) for part in out.splitlines()[0].split(", ")]
    return {name: float(value) for name, value in pairs}


def test_a_folder_and_an_npz_of_the_same_images_have_no_distance(place):
    out = check(script("evaluate.py", f"--score={place}/images", f"--against={place}/images.npz", *LITE))
    found = figures(out)
    assert abs(found["FD_efficientnet_lite0"]) < 1e-3
    assert [found[name] for name in ("precision", "recall", "density", "coverage")] == [1, 1, 1, 1]
    assert "12 images" in out and "efficientnet-lite0-1280@32px" in out and "k = 3" in out
    dark = figures(check(script("evaluate.py", f"--score={place}/dark.npz", f"--against={place}/images", *LITE)))
    assert dark["FD_efficientnet_lite0"] > 1 and dark["KID"] > found["KID"] and dark["KID_std"] >= 0


def test_images_of_two_sizes_are_compared_with_a_word():
    images = torch.randint(0, 256, (4, 1, 8, 12), dtype=torch.uint8)
    told = [note for note in ann2snn.score(images, images.mT, ["kid"], extractor="lite0")["notes"] if "pixels" in note]
    assert told == ["images of 8x12 pixels (height, width) are compared with images of 12x8, each scaled alike"]
    assert not any("pixels" in note for note in ann2snn.score(images, images, ["kid"], extractor="lite0")["notes"])


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (["--score={}/images"], ["--against"]),
        (["--score={}/nothing", "--against={}/images"], ["nothing does not exist"]),
        (["--score={}/text.npz", "--against={}/images"], ["text.npz is neither"]),
        (["--score={}/other.npz", "--against={}/images"], ["other.npz has no images"]),
        (["--score={}/few", "--against={}/images"], ["2 images", "(--score)"]),
        (["--score={}/images", "--against={}/few"], ["2 images", "(--against)"]),
        (["--metrics=prdc", "--score={}/images", "--against={}/few"], ["2 images", "--pr_k=3"]),
        (["--metrics=fid", "--score={}/images", "--against={}/few"], ["'fid'", "fd, is, kid, prdc, fad"]),
        (["--metrics=is", "--score={}/images", "--against={}/few"], ["efficientnet-lite0", "logits"]),
        (["--metrics=fad", "--score={}/images", "--against={}/few"], ["--fad_encoder"]),
        (["--extractor=vgg", "--score={}/images", "--against={}/few"], ["--extractor=vgg", "torchvision:"]),
        (["--extractor=torchvision:resnet18", "--score={}/images", "--against={}/few"], ["--extractor_weights"]),
        (["--extractor_weights=a.pth", "--score={}/images", "--against={}/few"], ["--extractor_weights=a.pth", "drop"]),
    ],
    ids=lambda what: " ".join(what).replace("{}", ""),
)
def test_bad_input_is_refused_in_a_line(place, what, words):
    refused(script("evaluate.py", *LITE, *(word.format(place) for word in what)), *words)
