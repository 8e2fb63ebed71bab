"""The network that ships: it loads, converts exactly, and is called by its name."""

import json
from pathlib import Path

import pytest
import torch

import ann2snn
from tests.scripts import check, script

NAME = "fashion-mnist-32-4bit"
BITS = {NAME: 4, "fashion-mnist-32-3bit": 3, "fashion-mnist-32-2bit": 2, "fashion-mnist-32-classes": 4}
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/pretrained.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=BITS)
def ann(request):
    return ann2snn.pretrained(request.param)


def test_it_converts_exactly_and_its_first_convolution_alone_reads_real_values(ann):
    ann = ann.double()
    snn = ann2snn.convert(ann)
    x, t = torch.randn(2, 1, 32, 32, dtype=torch.float64), torch.tensor([30, 900])
    with torch.no_grad():
        assert torch.equal(snn(x, t), ann(x, t))
    assert snn.clock.spike_steps == 2**ann.config.bits - 1 and snn.describe().share > 0.98
    ann.float()


def test_its_images_are_garments(ann):
    """Mostly black with something bright in the middle, and not two alike: not noise, not one picture."""
    labels = ["Sandal", "Sneaker", "Bag", "Ankle boot"] if ann.config.num_classes else None  # they keep off the border
    images = ann2snn.sample(ann, 4, steps=8, labels=labels, progress=False).double() / 255
    border = torch.cat([images[:, :, :2], images[:, :, -2:]], 2)
    assert border.mean() < 0.2 < images[:, :, 8:24, 10:22].mean()
    assert torch.pdist(images.flatten(1)).min() > 2


def test_those_that_know_classes_draw_what_is_asked_for():
    """A trouser has a gap between its legs, a pullover has none."""
    net = ann2snn.pretrained("fashion-mnist-32-classes")
    names = net.config.class_names
    images = ann2snn.sample(net, 6, steps=8, guidance=1.0, labels=["Trouser", "Pullover"] * 3, progress=False).double()
    width = (images[:, 0] > 50).sum(2).amax(1)  # of the widest row
    assert len(names) == 10 and width[::2].max() < width[1::2].min()


@pytest.mark.parametrize("name", BITS)
def test_files_are_small_and_have_a_card(name):
    folder = ROOT / "ann2snn" / "pretrained" / name
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6e6
    assert f"# {name}\n" in (folder / "README.md").read_text(encoding="utf-8")
    assert ann2snn.pretrained(name).config.bits == BITS[name]
    assert f"| `{name}` | {BITS[name]} bits, {2 ** BITS[name] - 1} time steps |" in PAGE


def test_other_names_are_refused():
    with pytest.raises(ann2snn.UserError, match=f"use one of .*{NAME}"):
        ann2snn.pretrained("imagenet")


def test_scripts_take_its_name(tmp_path):
    flags = ["--sample_only", f"--eval_model_path={NAME}", f"--logdir={tmp_path}", "--num_images=1"]
    check(script("evaluate.py", *flags, "--sampler=ddim", "--sampler_steps=1", "--num_threads=1"))
    assert len(list(tmp_path.glob("generated/*/*.png"))) == 1


def test_the_page_shows_the_scores_that_were_measured():
    for line in json.loads((ROOT / "docs/figures/pretrained.json").read_text())["lines"]:
        assert f"| {line['count']:,} | {line['FD_efficientnet_lite0']:.1f} |" in PAGE
