"""Batch norm over time, batch and space: PyTorch's in one process, the whole batch's in several, and its gain."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ann2snn.errors import UserError
from ann2snn.neurons import StepBatchNorm
from tests.helpers import assert_equal
from tests.processes import ended, fork

CHANNELS, SHAPE = 5, (8, 5, 3, 3)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Affine and running statistics like nothing special."""
    with torch.no_grad():
        for seed, (name, value) in enumerate(norm.double().state_dict().items()):
            if name != "num_batches_tracked":
                value.copy_(1 + 0.3 * normal(CHANNELS, seed=10 + seed).clamp(-3, 3))
    return norm


def passed(norm: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Output, gradients of Σ weights·output, and statistics after one call."""
    leaf = x.clone().requires_grad_()
    norm.zero_grad()
    y = norm(leaf)
    (weights * y).sum().backward()
    statistics = {name: value.clone() for name, value in norm.named_buffers()}
    gradients = {name: parameter.grad.clone() for name, parameter in norm.named_parameters()}
    return {"output": y.detach(), "gradient": leaf.grad, **{f"{k}'": v for k, v in gradients.items()}, **statistics}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_alone_it_is_pytorchs(training):
    own, theirs = filled(StepBatchNorm(CHANNELS)).train(training), filled(nn.BatchNorm2d(CHANNELS)).train(training)
    assert own.state_dict().keys() == theirs.state_dict().keys()
    for seed in range(2):  # the second call starts from the statistics that the first one left
        x, weights = 2 * normal(*SHAPE, seed=seed) + 0.7, normal(*SHAPE, seed=seed + 5)
        assert_same(passed(own, x, weights), passed(theirs, x, weights), 0)
    assert int(own.num_batches_tracked) == 2 * training


def test_statistics_are_over_time_batch_and_space_and_the_running_variance_is_unbiased():
    norm, x = StepBatchNorm(CHANNELS).double().train(), 3 * normal(*SHAPE) + 2
    y = norm(x)
    rows = x.transpose(0, 1).flatten(1)  # a channel's values at all steps, images and pixels
    mean, count = rows.mean(1), rows.shape[1]
    squares = (rows - mean[:, None]).square().sum(1)
    wanted = (x - mean.view(1, -1, 1, 1)) / (squares / count + 1e-5).sqrt().view(1, -1, 1, 1)
    torch.testing.assert_close(y, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * squares / (count - 1))


@pytest.mark.parametrize("training", [True, False])
def test_the_gain_multiplies_what_is_normalised_before_the_bias(training):
    x, plain, scaled = normal(*SHAPE), filled(StepBatchNorm(CHANNELS)), filled(StepBatchNorm(CHANNELS, gain=0.5**0.5))
    plain.train(training), scaled.train(training)
    bias = plain.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(scaled(x) - bias, 0.5**0.5 * (plain(x) - bias), rtol=1e-12, atol=1e-12)
    assert_equal(scaled.running_var, plain.running_var)


def test_a_pass_that_repeats_another_leaves_the_statistics_alone():
    norm, x = filled(StepBatchNorm(CHANNELS)).train(), normal(*SHAPE)
    first = norm(x)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm.update = False
    assert_equal(norm(x), first)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_a_negative_variance_is_refused():
    norm = StepBatchNorm(CHANNELS)
    norm.adopt(dict(norm.state_dict()))
    with pytest.raises(UserError, match="negative variance"):
        norm.adopt({"running_var": torch.tensor([1.0, -1e-9])})


# ---- several processes ----------------------------------------------------------------------------------------------


def in_processes(count: int, work: Callable[[int], None]) -> None:
    """work(rank) in forked processes that form a world."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def child(rank: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=count)
        work(rank)
        dist.barrier()  # the one with the store must not leave while another still asks it
        dist.destroy_process_group()

    children = [fork(lambda rank=rank: child(rank)) for rank in range(count)]
    assert [ended(process) for process in children] == [0] * count


@pytest.mark.parametrize("gain", [1.0, 0.6])
@pytest.mark.parametrize("cut", [4, 3], ids=["halves", "unequal parts"])
def test_two_processes_see_the_whole_batch(cut, gain, tmp_path: Path):
    """Means far from zero: sums of squares would cancel them."""
    x = torch.cat([normal(4, *SHAPE[1:]) + 50, 3 * normal(4, *SHAPE[1:], seed=1) + 52])
    weights = normal(*SHAPE, seed=2)
    parts = [slice(0, cut), slice(cut, None)]

    def work(rank: int) -> None:
        norm = filled(StepBatchNorm(CHANNELS, gain)).train()
        found = passed(norm, x[parts[rank]], weights[parts[rank]])
        torch.save(found, tmp_path / f"{rank}.pt")

    in_processes(2, work)
    whole = passed(filled(StepBatchNorm(CHANNELS, gain)).train(), x, weights)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    together = {name: torch.cat([part[name] for part in found]) for name in ("output", "gradient")}
    together |= {name: found[0][name] + found[1][name] for name in ("weight'", "bias'")}  # each has its rows' share
    for part in found:
        statistics = {name: value for name, value in part.items() if name in norm_buffers()}
        assert_same(together | statistics, whole, 1e-10)


def norm_buffers() -> set[str]:
    return {"running_mean", "running_var", "num_batches_tracked"}


def test_float32_currents_far_from_zero_keep_their_variance(tmp_path: Path):
    """One part in 10^6 of the mean: one-pass sums of squares in float32 have no digit of it left."""
    x = (1000 + 1e-3 * normal(*SHAPE)).float()

    def work(rank: int) -> None:
        norm = StepBatchNorm(CHANNELS).train()
        torch.save(norm(x[4 * rank :][:4]).detach(), tmp_path / f"{rank}.pt")

    in_processes(2, work)
    found = torch.cat([torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)])
    whole = StepBatchNorm(CHANNELS).double().train()(x.double())
    torch.testing.assert_close(found.double(), whole, rtol=0, atol=2e-2)
