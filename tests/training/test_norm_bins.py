"""Training with batch norm's statistics per diffusion time: split, resumed and averaged as without."""

import pytest
import torch

from ann2snn.checkpoints import checkpoint
from ann2snn.config import DiffusionConfig, TrainConfig, UNetConfig
from ann2snn.distributed.world import ALONE
from ann2snn.errors import UserError
from ann2snn.neurons import BinnedBatchNorm
from ann2snn.training.trainer import Trainer
from tests.helpers import assert_equal

IMAGES = torch.randint(256, (3, 8, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def trainer(bins: int = 3) -> Trainer:
    shape = {"ch": 8, "ch_mult": (1,), "num_res_blocks": 1, "bits": 2, "diffusion_steps": 50, "dropout": 0.1}
    network = UNetConfig(1, 4, norm="batch", norm_bins=bins, spike_driven=True, **shape)
    train = TrainConfig(batch_size=8, total_steps=3, accumulate=2, ema_decay=0.5)
    return Trainer(network, DiffusionConfig(diffusion_steps=50), train, ALONE)


def begun(bins: int = 3) -> Trainer:
    run = trainer(bins)
    run.initialize_activations(IMAGES[0])
    return run


def norms(net: torch.nn.Module) -> list[BinnedBatchNorm]:
    return [module for module in net.modules() if isinstance(module, BinnedBatchNorm)]


def test_all_parts_begin_with_the_statistics_of_one_batch_and_go_apart():
    run = begun()
    for norm in norms(run.net):
        torch.testing.assert_close(norm.running_mean, norm.running_mean[:1].expand(3, -1), rtol=0, atol=1e-7)
    for batch in IMAGES:
        run.train_step(batch)
    assert all(not torch.equal(norm.running_var[0], norm.running_var[2]) for norm in norms(run.net))
    averaged = zip(norms(run.ema), norms(run.net), strict=True)
    assert all(not torch.equal(mean.running_mean, raw.running_mean) for mean, raw in averaged)


def test_a_resumed_training_ends_at_the_same_bits_and_other_parts_are_refused(tmp_path):
    whole, first = begun(), begun()
    for batch in IMAGES:
        whole.train_step(batch)
    first.train_step(IMAGES[0])
    path = tmp_path / "ckpt.pt"
    checkpoint.save(path, first.payload(torch.zeros(1)))
    second = trainer()
    second.restore(path)
    for batch in IMAGES[1:]:
        second.train_step(batch)
    for name, value in second.net.state_dict().items():
        assert_equal(value, whole.net.state_dict()[name])
    for name, value in second.ema.state_dict().items():
        assert_equal(value, whole.ema.state_dict()[name])
    with pytest.raises(UserError, match="norm_bins=3, now norm_bins=1"):
        trainer(1).restore(path)
