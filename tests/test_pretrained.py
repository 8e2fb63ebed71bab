"""The network that ships: it loads, converts exactly, and is called by its name."""

import json
from pathlib import Path

import pytest
import torch

import ann2snn
from tests.scripts import check, script

NAME = "fashion-mnist-32-4bit"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ann():
    return ann2snn.pretrained(NAME)


def test_it_converts_exactly_and_its_first_convolution_alone_reads_real_values(ann):
    ann = ann.double()
    snn = ann2snn.convert(ann)
    x, t = torch.randn(2, 1, 32, 32, dtype=torch.float64), torch.tensor([30, 900])
    with torch.no_grad():
        assert torch.equal(snn(x, t), ann(x, t))
    assert snn.clock.spike_steps == 15 and snn.describe().share > 0.98
    ann.float()


def test_its_images_are_garments(ann):
    """Mostly black with something bright in the middle, and not two alike: not noise, not one picture."""
    images = ann2snn.sample(ann, 4, steps=8, progress=False).double() / 255
    border = torch.cat([images[:, :, :2], images[:, :, -2:]], 2)
    assert border.mean() < 0.15 < images[:, :, 8:24, 10:22].mean()
    assert torch.pdist(images.flatten(1)).min() > 2


def test_files_are_small_and_other_names_refused():
    folder = ROOT / "ann2snn" / "pretrained" / NAME
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6e6
    with pytest.raises(ann2snn.UserError, match=f"use one of {NAME}"):
        ann2snn.pretrained("imagenet")


def test_scripts_take_its_name(tmp_path):
    flags = ["--sample_only", f"--eval_model_path={NAME}", f"--logdir={tmp_path}", "--num_images=1"]
    check(script("evaluate.py", *flags, "--sampler=ddim", "--sampler_steps=1", "--num_threads=1"))
    assert len(list(tmp_path.glob("generated/*/*.png"))) == 1


def test_the_page_shows_the_scores_that_were_measured():
    page = (ROOT / "docs/pretrained.md").read_text(encoding="utf-8")
    for line in json.loads((ROOT / "docs/figures/pretrained.json").read_text())["lines"]:
        assert f"| {line['count']:,} | {line['FD_efficientnet_lite0']:.1f} |" in page
