"""What was measured of one network does not pass for another's that is converted in the same folder."""

import json

import pytest
import torch

import ann2snn
from ann2snn.checkpoints import checkpoint
from ann2snn.report.collect import collect
from ann2snn.run.folder import CONVERTED
from ann2snn.stages.convert import print_gap, set_aside_earlier
from tests.helpers import random_ann


def converted(seed: int, **how) -> dict:
    torch.manual_seed(seed)
    return checkpoint.payload_of(ann2snn.convert(random_ann(bits=2, seed=seed), **how), stage="converted")


@pytest.mark.parametrize("damaged", [False, True])
def test_what_was_measured_of_another_network_gets_a_name_of_its_own(tmp_path, damaged, capsys):
    checkpoint.save(tmp_path / CONVERTED, converted(0))
    if damaged:
        (tmp_path / CONVERTED).write_bytes(b"PK")
    (tmp_path / "gap.json").write_text(json.dumps({"of": 0}))
    (tmp_path / "own.json").write_text("")
    (tmp_path / "images").mkdir()
    for name in ("ANN", "SNN_T3", "SNN_T3_carried", "SNN_T3.prev", "interpolate_1"):
        (tmp_path / "images" / f"{name}.png").write_text(name)
    set_aside_earlier(tmp_path, converted(1))
    pictures = {path.name: path.read_text() for path in (tmp_path / "images").iterdir()}
    aside = {f"{name}.prev.png": name for name in ("ANN", "SNN_T3", "SNN_T3_carried")}
    assert pictures == aside | {"interpolate_1.png": "interpolate_1"}
    assert set(collect(tmp_path).pictures) == {"images/interpolate_1.png"}
    assert {path.name for path in tmp_path.iterdir()} == {CONVERTED, "gap.prev.json", "images", "own.json"}
    assert "gap.json is of another network: it is now gap.prev.json" in capsys.readouterr().out


def test_the_same_network_converted_again_keeps_what_was_measured(tmp_path):
    checkpoint.save(tmp_path / CONVERTED, converted(0))
    (tmp_path / "gap.json").write_text("{}")
    set_aside_earlier(tmp_path, converted(0, schedule="stream"))
    assert (tmp_path / "gap.json").exists()


@pytest.mark.parametrize(("images", "said"), [(1, "on 1 image at"), (2, "on 2 images at")])
def test_the_gap_says_how_many_images_it_is_of(images, said, capsys):
    print_gap([], images)
    assert said in capsys.readouterr().out
