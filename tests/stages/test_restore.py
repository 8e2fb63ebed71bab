"""A run that is taken up reads its checkpoint once, and both sets of weights from it."""

from pathlib import Path
from unittest import mock

import pytest
import torch

from ann2snn.checkpoints import checkpoint, seal
from ann2snn.config import DiffusionConfig, TrainConfig, UNetConfig
from ann2snn.distributed.world import ALONE
from ann2snn.errors import UserError
from ann2snn.training.state import Initial
from ann2snn.training.trainer import Trainer
from tests.helpers import assert_equal

NETWORK = UNetConfig(1, 8, ch=8, ch_mult=(1,), num_res_blocks=1, bits=2, norm_groups=4, diffusion_steps=50)


def trainer() -> Trainer:
    return Trainer(NETWORK, DiffusionConfig(diffusion_steps=50), TrainConfig(batch_size=4, total_steps=9), ALONE)


@pytest.fixture
def saved(tmp_path):
    """(path, trainer) of a run whose two sets of weights differ."""
    run = trainer()
    for _ in range(2):
        run.train_step(torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8))
    checkpoint.save(tmp_path / "ckpt.pt", run.payload(torch.zeros(1)))
    return tmp_path / "ckpt.pt", run


def test_both_sets_of_weights_come_from_one_reading(saved, monkeypatch):
    path, run = saved
    calls = []
    for module, name in ((checkpoint, "read"), (seal, "content_hash")):
        counted = mock.Mock(side_effect=getattr(module, name))
        monkeypatch.setattr(module, name, counted)
        calls.append(counted)
    again = trainer()
    again.restore(path)
    assert [counted.call_count for counted in calls] == [1, 1]
    assert again.step == 2
    states = [net.state_dict() for net in (again.net, again.ema)]
    assert_equal(states, [net.state_dict() for net in (run.net, run.ema)])
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("key", ["net_model", "ema_model"])
def test_either_set_of_weights_is_checked(saved, key):
    path, run = saved
    payload = run.payload(torch.zeros(1))
    name = next(iter(payload[key]))
    checkpoint.save(path, payload | {key: payload[key] | {name: payload[key][name] * float("nan")}})
    with pytest.raises(UserError, match=f"{name} holds values that are not finite"):
        trainer().restore(path)


def begun_with(content: str) -> Initial:
    return Initial(Path(f"{content}.pt"), content, trainer().net.state_dict)


def test_what_a_run_began_with_is_what_it_goes_on_from(tmp_path):
    run, path = trainer(), tmp_path / "ckpt.pt"
    run.begin_with(begun_with("one"))
    for again in (None, begun_with("one"), None):  # asked or not, it is handed on
        checkpoint.save(path, run.payload(torch.zeros(1)))
        run = trainer()
        run.restore(path, again)
    with pytest.raises(UserError, match=r"ckpt.pt: it was begun with other weights than those of two.pt"):
        trainer().restore(path, begun_with("two"))
    checkpoint.save(path, trainer().payload(torch.zeros(1)))
    with pytest.raises(UserError, match="begun with fresh weights, not with those of one.pt"):
        trainer().restore(path, begun_with("one"))
    payload = run.payload(torch.zeros(1))
    del payload["config"]["train"]["origin"]  # a file of before
    checkpoint.save(path, payload)
    trainer().restore(path, begun_with("two"))
