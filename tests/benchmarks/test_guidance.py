"""What the benchmark of guidance counts is what images take; and what it takes for a class is one."""

import json

import pytest
import torch

import ann2snn
from ann2snn.config import SampleConfig
from ann2snn.generate.sampling import Hooks, generate
from benchmarks import guidance
from tests.helpers import random_ann


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_spikes_are_those_that_images_take_when_they_are_generated(weight):
    ann = random_ann(2, in_channels=1, num_classes=3)
    sample = SampleConfig("ddim", 3, guidance=weight)
    row, snn = guidance.measured(ann, sample, 2), ann2snn.convert(ann)
    for name, carry in (("spikes_from_rest", False), ("spikes_carried", True)):
        found = []
        generate(
            snn, SampleConfig("ddim", 3, guidance=weight, carry=carry), range(2), hooks=Hooks(on_spikes=found.extend)
        )
        assert row[name] == pytest.approx(sum(one.spikes for one in found) / 2)
    assert row["worst_error"] == 0 and row["branches"] == (2 if weight else 1)


def test_agreement_is_the_nearest_class_mean():
    means = torch.tensor([[0.0, 0.0], [200.0, 0.0], [0.0, 200.0]], dtype=torch.float64)
    images = torch.tensor([[1, 2], [190, 9], [0, 255], [120, 0]], dtype=torch.uint8).view(4, 1, 1, 2)
    assert guidance.agreement(images, torch.tensor([0, 1, 2, 0]), means) == 0.75


def test_bad_input_is_one_line(tmp_path, capsys):
    (tmp_path / "x.json").write_text(json.dumps({"rows": [{"guidance": 1}]}))
    for arguments, words in (
        ([], "give --checkpoint"),
        (["--show", str(tmp_path / "x.json")], "no file of this benchmark"),
        (["--checkpoint", str(tmp_path / "none.pt")], "none.pt"),
        (["--checkpoint", "ann2snn/pretrained/fashion-mnist-32-4bit"], "knows no classes"),
    ):
        assert guidance.main(arguments) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
