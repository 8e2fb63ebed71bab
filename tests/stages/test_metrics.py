"""A metric of one's own: one class and one line of the table, and its figure appears wherever figures do."""

import json
from types import SimpleNamespace

import pytest
import torch

import ann2snn
from ann2snn.data import load_dataset
from ann2snn.distributed.world import ALONE
from ann2snn.errors import UserError
from ann2snn.metrics.metric import Figures, Metric
from ann2snn.metrics.registry import METRICS
from ann2snn.report.collect import collect
from ann2snn.report.compare import comparison
from ann2snn.report.html import page
from ann2snn.report.summary import summary_text
from ann2snn.run.folder import RunFolder
from ann2snn.stages import evaluate
from ann2snn.stages.generation import RealImages, Scoring
from tests.metrics.ranks import over_ranks
from tests.scripts import script
from tests.stages.test_bad_input import refused


class Brightness(Metric):
    lower = ("brightness",)
    settings = ("brightness_scale",)

    def __init__(self, setting):
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, batch):
        pixels = batch.images.double()
        self.sums += torch.stack([pixels.sum(), torch.tensor(float(pixels.numel()))])

    def reduce(self, world):
        self.sums = world.sum(self.sums)

    def compute(self):
        return Figures({"brightness": self.sums[0] / self.sums[1]}, {"brightness_scale": 255}, ["of all pixels"])


class Means:
    """An extractor: mean of the image and of two corners."""

    name, dim, distance_key, notes, has_logits = "means", 3, "FD_means", (), False

    def __call__(self, images):
        x = images.float()[:, 0]
        parts = [x.mean((1, 2)), x[:, :4, :4].mean((1, 2)), x[:, 4:, 4:].mean((1, 2))]
        return SimpleNamespace(features=torch.stack(parts, dim=1), logits=None)


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setitem(METRICS, "brightness", Brightness)
    return load_dataset("fashion_mnist_10k", "", 8, train=False).part(0, 20)


def test_it_appears_in_the_results_the_print_the_report_and_the_comparisons(data, tmp_path, capsys):
    for scoring in (Scoring(("brightness",)), Scoring(("kid",), Means(), real=RealImages(data, 20))):
        evaluate.score_data(RunFolder(tmp_path), data, 20, scoring, ALONE)
    line, other = map(json.loads, (tmp_path / "snn_eval.txt").read_text().splitlines())
    mean = data.images.double().mean().item()
    assert line["brightness"] == pytest.approx(mean) and line["brightness_scale"] == 255
    assert line["extractor"] == "none" and line["reference"] is None and line["notes"] == ["of all pixels"]
    assert "KID" in other and "FD_means" not in other and other["real_images"] == 20
    assert f"brightness {mean:.3g} (20 images)" in capsys.readouterr().out
    run = collect(tmp_path)
    assert [set(score.values) for score in run.scores] == [{"brightness"}, {"KID", "KID_std"}]
    assert "brightness (images)" in summary_text(run)
    assert "brightness" in page(run) and "brightness" in comparison(run, run)
    found = ann2snn.score(data.images, 255 - data.images, ["brightness"])
    assert found["brightness"] == pytest.approx(mean)
    assert set(ann2snn.score(data.images, data.images, extractor=Means())) >= {
        "FD_means",
        "KID",
        "recall",
        "brightness",
    }


def test_processes_share_the_work(data):
    def reduced(metric, world):
        metric.reduce(world)
        return metric.compute().values["brightness"]

    halves = [Brightness(None) for _ in range(2)]
    for metric, part in zip(halves, data.images.split(10), strict=True):
        metric.update(SimpleNamespace(images=part))
    assert [float(found) for found in over_ranks(halves, reduced)] == [pytest.approx(data.images.double().mean())] * 2


def test_a_line_replaces_an_older_one_only_if_it_has_its_figures(tmp_path):
    common = {"network": "trained", "spiking": None, "count": 9, "seed": 0}
    figures = {"FID": 3.0}, {"KID": 1.0}, {"FID": 2.0, "IS": 5.0}, {"KID": 4.0, "pr_k": 5}
    (tmp_path / "snn_eval.txt").write_text("".join(json.dumps(common | found) + "\n" for found in figures))
    assert [score.values for score in collect(tmp_path).scores] == [{"KID": 1.0}, {"FID": 2.0, "IS": 5.0}, {"KID": 4.0}]


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        (["nothing"], "no metric is called 'nothing'; use any of fd, is"),
        ([], "none are given"),
        (3, "metrics is a int"),
        ("fad", "fad_encoder"),
        (["is"], "means does not give"),
    ],
)
def test_python_refuses_in_the_same_words(metrics, told):
    images = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=told):
        ann2snn.score(images, images, metrics, extractor=Means())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"images": torch.zeros(5, 8)}, "images: "),
        ({"images": 3}, "images is a int"),
        ({"against": "no/where"}, "no/where does not exist"),
        ({"k": 0}, "k=0"),
        ({"k": 5}, "--pr_k=5"),
        ({"extractor": 3}, "extractor is a int"),
        ({"weights": "a.pth"}, "weights=a.pth"),
        ({"device": "moon"}, "device=moon"),
    ],
    ids=str,
)
def test_python_names_the_argument(given, told):
    images = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=told):
        ann2snn.score(**{"images": images, "against": images, "extractor": Means()} | given)


def test_metrics_are_of_evaluating():
    refused(script("ANN_train.py", "--train", "--metrics=kid"), "--metrics=kid", "evaluate.py")
