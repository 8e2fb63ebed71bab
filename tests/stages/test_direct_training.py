"""Training a spiking network through the real stage: resumed, averaged, recomputed, in one process or two."""

import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ann2snn.checkpoints import checkpoint
from ann2snn.config import DiffusionConfig, SampleConfig, TrainConfig
from ann2snn.data import load_dataset
from ann2snn.diffusion.power_ema import gamma_of
from ann2snn.distributed import world
from ann2snn.nets.fsddim import FSDDIMConfig
from ann2snn.nets.sddpm import SDDPMConfig
from ann2snn.run.folder import RunFolder
from ann2snn.stages import train
from ann2snn.stages.plan import Options, Training
from ann2snn.training.trainer import Trainer
from tests.processes import ended, fork

SHAPE = {"in_channels": 1, "image_size": 28, "ch": 4, "ch_mult": (1, 2), "num_res_blocks": 1, "diffusion_steps": 50}
SDDPM = SDDPMConfig(**SHAPE, spike_steps=2, dropout=0.2, corrections=("dropout",))
SDM = replace(SDDPM, tsm=True)
FSDDIM = FSDDIMConfig(**SHAPE, spike_steps=2, dropout=0.2)
NETWORKS = pytest.mark.parametrize("network", [SDDPM, SDM, FSDDIM], ids=["sddpm", "sdm", "fsddim"])


@pytest.fixture(scope="module")
def images():
    """The shipped data set, at its own size: nothing to scale."""
    return load_dataset("fashion_mnist_10k", Path(), 28, train=True)


def config_of(steps: int, **changes: object) -> TrainConfig:
    settings = {"dataset_type": "fashion_mnist_10k", "lr": 1e-3, "warmup": 3, "batch_size": 4, "ema_decay": 0.8}
    return TrainConfig(total_steps=steps, **settings | changes)


def run(folder: Path, images, network, steps: int, members=world.ALONE, **options: object) -> int:
    """Train with a checkpoint every fourth step; the exit code."""
    if members.main:
        folder.mkdir(exist_ok=True)
    members.wait()
    schedule = train.Schedule(0, 4, 1, 1)
    sampling = SampleConfig("ddim", steps=2)
    settings = (network, DiffusionConfig(diffusion_steps=50), config_of(steps), sampling, schedule, members)
    return train.run(Training(RunFolder(folder), images, *settings), Options(**options))


def content(folder: Path) -> dict:
    return checkpoint.read(folder / train.CHECKPOINT)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def distance(a: dict, b: dict) -> float:
    """Relative L2 distance of two states, running statistics included."""
    assert a.keys() == b.keys()
    flat = [torch.cat([value.double().flatten() for value in state.values()]) for state in (a, b)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


# ---- one process ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [pytest.param(SDDPM, marks=pytest.mark.slow), SDM, FSDDIM],  # SDDPM by the script: test_direct_scripts
    ids=["sddpm", "sdm", "fsddim"],
)
def test_stopped_and_continued_is_never_stopped_to_the_last_bit(network, images, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole, images, network, 6) == 0
    original = Trainer.train_step

    def stop_at_3(self, *batch):
        if self.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *batch)

    monkeypatch.setattr(Trainer, "train_step", stop_at_3)
    assert run(stopped, images, network, 6) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert content(stopped)["step"] == 3
    assert run(stopped, images, network, 6) == 0
    a, b = content(whole), content(stopped)
    for key in a.keys() | b.keys():
        assert equal(a[key], b[key]), key
    assert losses(whole) == losses(stopped) and len(losses(whole)) == 6
    assert a["kind"] == "direct" and any(name.endswith("running_var") for name in a["ema_model"])
    counters = {int(v) for name, v in a["net_model"].items() if name.endswith("num_batches_tracked")}
    assert counters == {6}
    for kind in ("ema", "net"):
        loaded = checkpoint.load(whole / train.CHECKPOINT, weights=kind)
        assert loaded.net.config == network and equal(dict(loaded.net.state_dict()), a[f"{kind}_model"])


@NETWORKS
def test_running_statistics_are_averaged_like_the_weights(network, images):
    trainer = Trainer(network, DiffusionConfig(diffusion_steps=50), config_of(3), world.ALONE)
    before = {name: value.clone() for name, value in trainer.ema.state_dict().items()}
    history = []
    for step in range(3):
        trainer.train_step(torch.stack([images[4 * step + i] for i in range(4)]))
        history.append({name: value.clone() for name, value in trainer.net.state_dict().items()})
    moved = 0
    for name, value in trainer.ema.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        average = before[name].double()
        for state in history:
            average = 0.8 * average + 0.2 * state[name].double()
        torch.testing.assert_close(value.double(), average, rtol=1e-5, atol=1e-7, msg=name)
        moved += name.endswith(("running_mean", "running_var")) and not torch.equal(value, before[name])
    norms = sum(name.endswith(("running_mean", "running_var")) for name in before)
    assert moved == norms > 20


@NETWORKS
def test_activations_computed_again_are_the_same_ones(network, images, tmp_path):
    run(tmp_path / "plain", images, network, 3)
    run(tmp_path / "other", images, network, 3, recompute=True)
    a, b = content(tmp_path / "plain"), content(tmp_path / "other")
    assert a.keys() == b.keys() and losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "other"), rel=1e-6)
    for key in ("net_model", "ema_model"):
        assert distance(a[key], b[key]) < 1e-6


@NETWORKS
def test_bfloat16_trains_nearly_the_same_network_in_float32_files(network, images, tmp_path):
    run(tmp_path / "plain", images, network, 3)
    run(tmp_path / "low", images, network, 3, amp=True)
    assert losses(tmp_path / "plain") != losses(tmp_path / "low")
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "low"), rel=0.05)
    weights = content(tmp_path / "low")["net_model"].values()
    assert all(value.dtype == torch.float32 for value in weights if value.is_floating_point())


# ---- two processes --------------------------------------------------------------------------------------------------


def in_two(work: Callable[[world.World], object]) -> None:
    """work(world) in two forked processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}

    def child(rank: int) -> None:
        os.environ |= place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        members = world.join("cpu")
        work(members)
        world.leave()

    children = [fork(lambda rank=rank: child(rank)) for rank in range(2)]
    assert [ended(process) for process in children] == [0, 0]


@pytest.mark.slow  # as test_direct_parallel, by the scripts
@NETWORKS
def test_two_processes_train_the_network_of_one(network, images, tmp_path):
    """Dropout is on, and batch norm sees the whole batch; what differs is the order of float32 sums."""
    run(tmp_path / "one", images, network, 3)
    in_two(lambda members: run(tmp_path / "two", images, network, 3, members))
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    for key in ("net_model", "ema_model"):
        assert distance(two[key], one[key]) < 3e-4
        statistics = [{n: v for n, v in whole[key].items() if "running" in n} for whole in (one, two)]
        assert distance(*statistics) < 1e-4


@pytest.mark.parametrize("network", [SDDPM, pytest.param(FSDDIM, marks=pytest.mark.slow)], ids=["sddpm", "fsddim"])
def test_power_averages_are_the_sums_over_all_steps_whether_it_was_killed_or_not(images, tmp_path, network):
    """That of σ_rel weighs step s of n by (s/n)^(γ+1) − ((s−1)/n)^(γ+1); its snapshots are the checkpoint's own."""
    sigma, steps = 0.1, []
    update = Trainer.update_ema

    def updated(self):
        update(self)
        steps.append({name: value.detach().double().clone() for name, value in self.net.named_parameters()})

    settings = (DiffusionConfig(diffusion_steps=50), config_of(3, power_ema=(sigma,)), SampleConfig("ddim", steps=2))

    def averaged(folder: Path) -> dict:
        folder.mkdir(exist_ok=True)
        schedule = train.Schedule(0, 2, 1, 0, power_ema_step=1)
        train.run(Training(RunFolder(folder), images, network, *settings, schedule, world.ALONE))
        return content(folder)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "update_ema", updated)
        whole = averaged(tmp_path / "whole")
        tracked = whole["power_ema"]["averages"][0]
        shares = ((torch.arange(4, dtype=torch.float64) / 3) ** (gamma_of(sigma) + 1)).diff()
        for name in steps[0]:
            wanted = sum(share * step[name] for share, step in zip(shares, steps, strict=True))
            torch.testing.assert_close(tracked[name].double(), wanted, rtol=1e-6, atol=1e-7)

        def killed(self):
            update(self)
            if self.step == 2:  # of 0 to 2
                os.kill(os.getpid(), signal.SIGKILL)

        patched.setattr(Trainer, "update_ema", killed)
        assert ended(fork(lambda: averaged(tmp_path / "killed"))) == -signal.SIGKILL
    again = averaged(tmp_path / "killed")
    assert all(torch.equal(value, again["power_ema"]["averages"][0][name]) for name, value in tracked.items())
    assert again["power_ema"]["snapshots"] == whole["power_ema"]["snapshots"]
    snapshot = checkpoint.read(tmp_path / "killed" / "power_ema" / f"{sigma}_3.pt")["ema_model"]
    assert all(torch.equal(value, snapshot[name]) for name, value in tracked.items())
