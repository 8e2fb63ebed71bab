"""Settings that change what a loss or a norm is: a training is not continued with others in silence."""

import pytest
import torch

from ann2snn.checkpoints import checkpoint
from ann2snn.config import DiffusionConfig, TrainConfig, UNetConfig
from ann2snn.distributed.world import ALONE
from ann2snn.errors import UserError
from ann2snn.training.trainer import Trainer


def trainer(norm="group", var_type="fixedlarge", **train) -> Trainer:
    network = UNetConfig(
        bits=2, in_channels=1, image_size=8, ch=8, ch_mult=(1,), num_res_blocks=1, norm_groups=4, norm=norm
    )
    return Trainer(network, DiffusionConfig(var_type=var_type), TrainConfig(batch_size=4, **train), ALONE)


CHANGES = {
    "the variance that weighs a bound": ({"loss_type": "kl"}, {"var_type": "fixedsmall"}, "var_type"),
    "the parts that batch norm sees": ({"norm": "batch"}, {"accumulate": 2}, "accumulate"),
}


@pytest.mark.parametrize(("kept", "changed", "flag"), CHANGES.values(), ids=CHANGES)
def test_what_decides_the_loss_stays_or_is_named(tmp_path, kept, changed, flag):
    path = tmp_path / "ckpt.pt"
    checkpoint.save(path, trainer(**kept).payload(torch.zeros(1)))
    with pytest.raises(UserError, match=rf"{flag}=.*, now {flag}=.*--{flag}.*--resume_with={flag}"):
        trainer(**kept, **changed).restore(path)
    allowed = trainer(**kept, **changed, resume_with=(flag,))
    allowed.restore(path)
    assert allowed.changes.keys() == {flag}


@pytest.mark.parametrize(("_", "changed", "flag"), CHANGES.values(), ids=CHANGES)
def test_where_it_decides_nothing_it_is_free(tmp_path, _, changed, flag):
    checkpoint.save(tmp_path / "ckpt.pt", trainer().payload(torch.zeros(1)))
    free = trainer(**changed)
    free.restore(tmp_path / "ckpt.pt")
    assert free.changes == {}
