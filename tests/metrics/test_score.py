import numpy as np
import pytest
import torch

from ann2snn.errors import UserError
from ann2snn.metrics.features import InceptionExtractor, Lite0Extractor
from ann2snn.metrics.frechet import frechet_distance
from ann2snn.metrics.frechet_metric import FrechetMetric
from ann2snn.metrics.inception_score import InceptionMetric
from ann2snn.metrics.metric import Batch, Setting
from ann2snn.metrics.score import make_stats, numbered, score_numbered
from ann2snn.metrics.stats_file import ReferenceStatistics, read_stats, write_stats
from tests.metrics.ranks import over_ranks

SIZE = 8


class _Pixels:
    """Features are 3 pixels, logits 5 others: what scores should be can be written down."""

    name, dim, distance_key, notes = "pixels-3", 3, "FD_pixels", ("a note",)

    def __init__(self, logits=True):
        self.logits = logits

    def __call__(self, images):
        flat = images.flatten(1).float()
        return _Extracted(flat[:, :3], flat[:, 3:8] / 50 if self.logits else None)


class _Extracted:
    def __init__(self, features, logits):
        self.features, self.logits = features, logits


def _images(count, seed=0):
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed)).byte()


def score_images(batches, *arguments, **options):
    """The scores of images that come in order."""
    return score_numbered(numbered(batches), *arguments, **options)


def _reference(count=40, seed=9):
    mu, sigma, count = make_stats([_images(count, seed)], _Pixels(), progress=False).compute()
    return ReferenceStatistics(mu, sigma, count, "pixels-3")


def test_scores_are_those_of_the_whole_set():
    images, reference = _images(50), _reference()
    got = score_images(iter(images.split(7)), _Pixels(), reference, splits=5, total=50, progress=False)
    features = images.flatten(1)[:, :3].double().numpy()
    distance = frechet_distance(features.mean(0), np.cov(features, rowvar=False), reference.mu, reference.sigma)
    p = (images.flatten(1)[:, 3:8].double() / 50).softmax(1).view(5, 10, 5)
    scores = (p * (p / p.mean(1, keepdim=True)).log()).sum(2).mean(1).exp()
    assert got["FD_pixels"] == pytest.approx(distance, rel=1e-9)
    assert got["IS"] == pytest.approx(scores.mean().item(), rel=1e-6)
    assert got["IS_std"] == pytest.approx(scores.std(correction=0).item(), rel=1e-5)
    assert (got["count"], got["extractor"], got["notes"]) == (50, "pixels-3", ["a note"])


def test_ranks_together_have_the_figures_of_one_process():
    images, reference = _images(60), _reference()
    alone = score_images([images], _Pixels(), reference, splits=3, progress=False)

    def gathered(part):
        setting = Setting(extractor=_Pixels(), statistics=reference)
        metrics = FrechetMetric(setting), InceptionMetric(setting, splits=3)
        found = _Pixels()(part)
        for metric in metrics:
            metric.update(Batch(range(len(part)), part, found.features, found.logits))
        return metrics

    def together(metrics, world):
        for metric in metrics:
            metric.reduce(world)
        return {name: value for metric in metrics for name, value in metric.compute().values.items()}

    for got in over_ranks([gathered(part) for part in images.split(30)], together):
        assert got == pytest.approx({key: alone[key] for key in ("FD_pixels", "IS", "IS_std")}, rel=1e-9)


def test_no_logits_no_inception_score():
    got = score_images([_images(20)], _Pixels(logits=False), _reference(), progress=False)
    assert set(got) == {"FD_pixels", "count", "extractor", "notes"}


@pytest.mark.parametrize(("images", "references", "notes"), [(4, 4, 0), (3, 4, 1), (4, 3, 1), (3, 2, 2)])
def test_too_few_images_for_the_covariance_are_noted(images, references, notes):
    got = score_images([_images(images)], _Pixels(logits=False), _reference(references), progress=False)
    deficient = [note for note in got["notes"] if "rank-deficient" in note]
    assert len(deficient) == notes
    assert any(note.startswith(f"{images} images") for note in deficient) == (images <= 3)
    assert any(note.startswith(f"{references} reference images") for note in deficient) == (references <= 3)


def test_other_extractors_statistics_are_refused_before_any_work():
    reference = _reference()
    other = ReferenceStatistics(reference.mu, reference.sigma, 40, "net-b")

    def never():
        raise AssertionError("images were asked for")
        yield

    with pytest.raises(UserError, match="'net-b'.*'pixels-3'"):
        score_images(never(), _Pixels(), other, progress=False)


def test_no_images():
    with pytest.raises(UserError, match="at least 2 images, got 0"):
        score_images([], _Pixels(), _reference(), progress=False)


def test_lite0_figure_is_not_called_fid(tmp_path):
    extractor = Lite0Extractor(32)
    mu, sigma, count = make_stats(_images(12).split(5), extractor, progress=False).compute()
    write_stats(tmp_path / "s.npz", mu, sigma, count, extractor.name)
    stats = read_stats(tmp_path / "s.npz", extractor.name, extractor.dim)
    got = score_images(_images(12).split(4), extractor, stats, progress=False)
    assert set(got) == {"FD_efficientnet_lite0", "count", "extractor", "notes"}
    assert got["FD_efficientnet_lite0"] <= 1e-6 * np.trace(sigma)
    assert len(got["notes"]) == 2
    assert score_images([_images(12, 1)], extractor, stats, progress=False)["FD_efficientnet_lite0"] > 1


@pytest.mark.slow
def test_inception_figures_have_their_usual_names(random_inception_file):
    extractor = InceptionExtractor(random_inception_file)
    stats = ReferenceStatistics(np.zeros(2048), np.eye(2048), None, extractor.name)
    got = score_images([_images(2)], extractor, stats, splits=1, progress=False)
    assert set(got) == {"FID", "IS", "IS_std", "count", "extractor", "notes"}
    assert got["FID"] > 0 and got["IS"] >= 1
