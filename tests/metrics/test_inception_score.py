import numpy as np
import pytest
import torch

from ann2snn.errors import UserError
from ann2snn.metrics.inception_score import InceptionScore
from tests.metrics.ranks import over_ranks


def _logits(count=53, classes=11, seed=0):
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def _by_definition(probabilities):
    """exp of the mean KL divergence, term by term in numpy."""
    p = probabilities.numpy()
    return np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(axis=0))), axis=1)))


def _blocks(count, splits):
    return [slice(i * count // splits, (i + 1) * count // splits) for i in range(splits)]


@pytest.mark.parametrize("splits", [1, 4, 10])
def test_known_total_gives_the_usual_consecutive_blocks(splits):
    logits = _logits()
    score = InceptionScore(splits, total=len(logits))
    for part in logits.split(8):
        score.update(part)
    expected = [_by_definition(logits[block].softmax(1)) for block in _blocks(len(logits), splits)]
    mean, std = score.compute()
    assert mean == pytest.approx(np.mean(expected), rel=1e-12)
    assert std == pytest.approx(np.std(expected), rel=1e-9, abs=1e-12)


def test_without_total_images_are_dealt_in_turn():
    logits = _logits()
    score = InceptionScore(4)
    for part in logits.split(7):
        score.update(part)
    expected = [_by_definition(logits[i::4].softmax(1)) for i in range(4)]
    mean, std = score.compute()
    assert (mean, std) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-10)


@pytest.mark.parametrize("total", [53, None])
def test_ranks_that_pass_indices_merge_to_the_same_score(total):
    logits, indices = _logits(), torch.arange(53)
    alone = InceptionScore(5, total)
    alone.update(logits)
    parts = [InceptionScore(5, total) for _ in range(4)]
    for rank, part in enumerate(parts[:3]):  # the last one has no image
        part.update(logits[rank::3], indices[rank::3])
    for whole in over_ranks(parts, InceptionScore.reduced_over):
        assert whole.compute() == pytest.approx(alone.compute(), rel=1e-12)


def test_bounds_identical_predictions_score_one_and_certain_even_ones_score_the_classes():
    same = InceptionScore(2)
    same.update(_logits(1).repeat(10, 1))
    assert same.compute() == pytest.approx((1.0, 0.0), abs=1e-12)
    certain = InceptionScore(1)
    certain.update(torch.where(torch.eye(7, dtype=torch.bool), 0.0, -torch.inf))
    assert certain.compute() == pytest.approx((7.0, 0.0), rel=1e-12)


def test_underflowing_probabilities_give_no_nan():
    score = InceptionScore(1)
    score.update(torch.tensor([[1e4, 0.0, -1e4], [0.0, 1e4, -1e4]], dtype=torch.float32))
    assert score.compute()[0] == pytest.approx(2.0, rel=1e-12)


def test_errors():
    with pytest.raises(UserError, match="splits"):
        InceptionScore(0)
    with pytest.raises(UserError, match="do not fill"):
        InceptionScore(10, total=9)
    few = InceptionScore(10)
    few.update(_logits(9))
    with pytest.raises(UserError, match="do not fill"):
        few.compute()
    with pytest.raises(UserError, match="NaN"):
        few.update(torch.full((1, 11), torch.nan))
    with pytest.raises(UserError, match="shape"):
        few.update(torch.zeros(1, 12))


def test_total_must_be_kept():
    score = InceptionScore(2, total=10)
    score.update(_logits(9))
    with pytest.raises(UserError, match="announced"):
        score.compute()
    with pytest.raises(UserError, match="total=10"):
        score.update(_logits(2))


def test_ranks_that_forget_indices_are_caught():
    parts = [InceptionScore(2, total=10) for _ in range(2)]
    for part in parts:
        part.update(_logits(5))
    for whole in over_ranks(parts, InceptionScore.reduced_over):
        with pytest.raises(UserError, match="indices"):
            whole.compute()
