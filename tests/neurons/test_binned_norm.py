"""Batch norm with statistics per diffusion time: the rows of each bin are a batch norm's own batch."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ann2snn.neurons import BinnedBatchNorm, StepBatchNorm, bins_of
from tests.helpers import assert_equal
from tests.neurons.test_batch_norm import (
    CHANNELS,
    SHAPE,
    assert_same,
    filled,
    in_processes,
    norm_buffers,
    normal,
    passed,
)

BINS = torch.tensor([2, 0, 2, 0, 0, 2, 0, 2])  # none in the middle one


class Called(nn.Module):
    """A norm of three bins that is called as one without, so that `passed` can."""

    def __init__(self, bins: torch.Tensor, count: int = 3) -> None:
        super().__init__()
        self.norm, self.at = filled(BinnedBatchNorm(CHANNELS, count)), bins

    def forward(self, x):
        return self.norm(x, self.at)


def single(binned: BinnedBatchNorm, index: int) -> nn.BatchNorm2d:
    """PyTorch's own with the weights and the statistics of one bin."""
    norm = nn.BatchNorm2d(CHANNELS).double().train(binned.training)
    state = {k: v[index] if k.startswith("running") else v for k, v in binned.state_dict().items()}
    norm.load_state_dict(state)
    return norm


def test_bins_are_equal_parts_of_diffusion_time():
    t = torch.tensor([0, 333, 334, 499, 500, 666, 667, 999])
    assert bins_of(t, 3, 1000).tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert bins_of(torch.tensor([499.9, 500.0, -1.0, 2000.0, float("nan")]), 6, 1000).tolist() == [2, 3, 0, 5, 0]


def test_in_training_each_bin_is_a_batch_of_pytorchs_own_norm():
    """Momenta are such that a row counts alike, however many come at once; a bin without rows keeps what it has."""
    called = Called(BINS).train()
    x, weights, before = 2 * normal(*SHAPE) + 0.7, normal(*SHAPE, seed=5), called.norm.running_var[1].clone()
    norms = {index: single(called.norm, index) for index in (0, 2)}
    found, gradients = passed(called, x, weights), {"weight": 0, "bias": 0}
    for index, norm in norms.items():
        rows = BINS == index
        norm.momentum = 1 - 0.9 ** (3 * 4 / 8)
        wanted = passed(norm, x[rows], weights[rows])
        for name in ("output", "gradient"):
            torch.testing.assert_close(found[name][rows], wanted[name], rtol=1e-9, atol=1e-9)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(found[f"norm.{name}"][index], wanted[name])
        gradients = {name: value + wanted[f"{name}'"] for name, value in gradients.items()}
    for name, wanted in gradients.items():
        torch.testing.assert_close(found[f"norm.{name}'"], wanted)
    assert_equal(called.norm.running_var[1], before)


def test_one_bin_is_the_norm_without():
    called, plain = Called(torch.zeros(8, dtype=torch.int64), 1), filled(StepBatchNorm(CHANNELS))
    plain.load_state_dict({k: v[0] if k.startswith("running") else v for k, v in called.norm.state_dict().items()})
    for training in (True, False):
        x, weights = normal(*SHAPE), normal(*SHAPE, seed=2)
        found, wanted = passed(called.train(training), x, weights), passed(plain.train(training), x, weights)
        named = {name.removeprefix("norm."): value for name, value in found.items()}
        assert_same(named | {k: named[k][0] for k in ("running_mean", "running_var")}, wanted, 1e-9)


def test_in_evaluation_every_row_has_the_statistics_of_its_bin():
    called = Called(torch.tensor([0, 1, 2, 2, 1, 0, 0, 1])).eval()
    x = normal(*SHAPE)
    for index in range(3):
        rows = called.at == index
        assert_equal(called(x)[rows], single(called.norm, index)(x[rows]))


def test_what_has_no_variance_is_not_learned_and_statistics_begin_with_those_of_all_rows():
    called = Called(torch.tensor([0, 1, 1])).train()
    x, before = normal(3, CHANNELS, 1, 1), called.norm.running_var.clone()
    y = called(x)
    assert_equal(y[0], called.norm.bias.view(-1, 1, 1))
    assert_equal(called.norm.running_var[0], before[0])
    assert not torch.equal(called.norm.running_var[1], before[1])
    called.norm.momentum = 1.0
    called(x)
    torch.testing.assert_close(called.norm.running_mean, x.flatten(1).mean(0).expand(3, -1))
    torch.testing.assert_close(called.norm.running_var, x.flatten(1).var(0).expand(3, -1))
    called.norm.update = False
    before = called.norm.running_mean.clone()
    called(x + 1)
    assert_equal(called.norm.running_mean, before)


def test_a_call_without_bins_is_refused():
    with pytest.raises(ValueError, match="bins of its rows"):
        BinnedBatchNorm(CHANNELS, 2)(torch.zeros(SHAPE))


def test_two_processes_see_the_whole_batch(tmp_path: Path):
    x, weights, parts = 3 * normal(*SHAPE) + 50, normal(*SHAPE, seed=2), [slice(0, 3), slice(3, None)]

    def work(rank: int) -> None:
        part = parts[rank]
        torch.save(passed(Called(BINS[part]).train(), x[part], weights[part]), tmp_path / f"{rank}.pt")

    in_processes(2, work)
    whole = passed(Called(BINS).train(), x, weights)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    together = {name: torch.cat([part[name] for part in found]) for name in ("output", "gradient")}
    together |= {name: found[0][name] + found[1][name] for name in ("norm.weight'", "norm.bias'")}
    for part in found:
        statistics = {name: value for name, value in part.items() if name.removeprefix("norm.") in norm_buffers()}
        assert_same(together | statistics, whole, 1e-10)
