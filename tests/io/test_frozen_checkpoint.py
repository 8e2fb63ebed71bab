"""Frozen norm statistics travel in a spiking network's file, and are checked like its weights."""

import pytest
import torch

from ann2snn.config import SpikingConfig
from ann2snn.convert import SpikingNetwork, convert, freeze_norms
from ann2snn.errors import UserError
from ann2snn.io import checkpoint
from tests.helpers import assert_equal, random_ann, random_batch

FROZEN = SpikingConfig("stream", stream_norm="frozen", settle_steps=1)
NORM = "middleblocks.1.block1.0"


@pytest.fixture
def frozen() -> SpikingNetwork:
    ann = random_ann().float()
    snn = convert(ann, FROZEN)
    x, t = random_batch(ann, 6)
    freeze_norms(ann, snn, x.float(), t, bins=3)
    return snn


def saved(snn: SpikingNetwork, path, **changes: torch.Tensor | None) -> None:
    """Write `snn`, with entries of one norm changed, or left out where None."""
    payload = checkpoint.snn_payload(snn)
    state = dict(payload["ema_model"]) | {f"{NORM}.{name}": value for name, value in changes.items()}
    payload["ema_model"] = {name: value for name, value in state.items() if value is not None}
    checkpoint.save(path, payload)


def test_a_network_with_frozen_norms_comes_back_and_answers_the_same(frozen, tmp_path):
    saved(frozen, tmp_path / "snn.pt")
    loaded = checkpoint.load(tmp_path / "snn.pt").net
    assert loaded.spiking == FROZEN
    for name, value in frozen.unet.state_dict().items():
        assert_equal(loaded.unet.state_dict()[name], value)
    x, t = random_batch(frozen, 3, seed=1)
    with torch.no_grad():
        assert_equal(loaded(x.float(), t), frozen(x.float(), t))


def test_a_file_without_statistics_loads_as_before_and_cannot_run_frozen(tmp_path):
    snn = convert(random_ann().float())
    saved(snn, tmp_path / "snn.pt")
    loaded = checkpoint.load(tmp_path / "snn.pt", spiking=FROZEN).net
    assert loaded.unet.state_dict().keys() == snn.net.state_dict().keys()
    with pytest.raises(UserError, match="statistics that this network does not carry"):
        loaded.check_ready()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen_mean": None}, f"{NORM}: frozen_var stands alone"),
        ({"frozen_var": torch.ones(3, 4)}, f"{NORM}: frozen_var is [3, 4], expected [bins, 2]"),
        ({"frozen_var": torch.ones(2, 2)}, f"{NORM}: frozen_mean has 3 bins and frozen_var 2"),
        ({"frozen_var": torch.full((3, 2), -1e-9)}, f"{NORM}: frozen_var holds negative variances"),
        ({"frozen_mean": torch.full((3, 2), torch.nan)}, f"{NORM}: frozen_mean holds values that are not finite"),
        ({"frozen_mean": torch.zeros(0, 2), "frozen_var": torch.zeros(0, 2)}, f"{NORM}: frozen_mean is [0, 2]"),
        ({"frozen_mode": torch.ones(3, 2)}, f"has the unknown entry {NORM}.frozen_mode"),
    ],
    ids=["alone", "groups", "bins", "negative", "nan", "no bins", "unknown"],
)
def test_impossible_statistics_are_refused_by_name(frozen, tmp_path, changes, message):
    path = tmp_path / "snn.pt"
    saved(frozen, path, **changes)
    with pytest.raises(UserError) as refusal:
        checkpoint.load(path)
    assert str(refusal.value).startswith(f"refusing {path}: ") and message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_ann_takes_no_statistics(frozen, tmp_path):
    payload = checkpoint.snn_payload(frozen) | {"kind": "ann"}
    checkpoint.save(tmp_path / "ckpt.pt", payload)
    with pytest.raises(UserError, match=r"unknown entry \S+frozen_mean"):
        checkpoint.load(tmp_path / "ckpt.pt")
