"""What an earlier run left stays, where its checkpoint was taken away and a new one begins in the same folder."""

import os
import signal
from types import SimpleNamespace

import pytest

from ann2snn.checkpoints import checkpoint
from ann2snn.config import DiffusionConfig, TrainConfig
from ann2snn.distributed.world import ALONE
from ann2snn.run.folder import RunFolder
from ann2snn.stages import train
from ann2snn.stages.finetune_run import Run
from ann2snn.stages.plan import Training
from ann2snn.training.trainer import Trainer
from tests.processes import ended, fork
from tests.stages.test_best import SAMPLED, UNET, noise_images


def run(folder, steps: int = 6, seed: int = 0) -> None:
    """Train with a checkpoint and a picture every third step, and a line of the log for each."""
    schedule = train.Schedule(3, 3, 1, 1)
    config = TrainConfig("folder", total_steps=steps, warmup=0, batch_size=4, dropout=0.0, seed=seed)
    folder.mkdir(exist_ok=True)
    setting = (UNET, DiffusionConfig(diffusion_steps=20), config, SAMPLED, schedule, ALONE)
    assert train.run(Training(RunFolder(folder), noise_images(), *setting)) == 0


def test_a_new_training_keeps_log_network_and_pictures_of_the_one_before(tmp_path, capsys):
    run(tmp_path)
    (tmp_path / "trained_snn.pt").write_bytes(b"hours of work")
    log, picture = ((tmp_path / name).read_bytes() for name in ("log.jsonl", "sample/3.png"))
    for seed in (1, 2):
        for path in tmp_path.glob("ckpt*"):
            path.unlink()
        run(tmp_path, seed=seed)
    assert (tmp_path / "log.prev.jsonl").read_bytes() == log != (tmp_path / "log.jsonl").read_bytes()
    assert (tmp_path / "sample.prev/3.png").read_bytes() == picture
    assert (tmp_path / "trained_snn.prev.pt").read_bytes() == b"hours of work"
    assert (tmp_path / "log.prev.2.jsonl").exists() and (tmp_path / "sample.2.prev").is_dir(), "each has a name"
    assert "is kept as" in capsys.readouterr().err


def test_a_training_that_goes_on_or_begins_again_sets_nothing_aside(tmp_path, monkeypatch):
    """Killed before its first checkpoint, it makes the same beginning again; killed later, it is resumed."""

    def killed(self):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Trainer, "update_ema", killed)
    assert ended(fork(lambda: run(tmp_path))) == -signal.SIGKILL
    monkeypatch.undo()
    assert (tmp_path / "log.jsonl").exists()
    run(tmp_path, 4)
    run(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if "prev" in path.name] == ["ckpt.prev.pt"]


@pytest.mark.parametrize(("left", "kept"), [(0, False), (7, True), (None, True)])
def test_a_new_fine_tuning_keeps_the_network_that_one_before_has_tuned(tmp_path, left, kept):
    best = tmp_path / "model_best.pt"
    if left is None:
        best.write_bytes(b"damaged, perhaps not beyond repair")
    else:
        checkpoint.save(best, {"ema_model": {}, "step": left})
    content = best.read_bytes()
    Run.keep_earlier(SimpleNamespace(folder=tmp_path, world=ALONE))
    there = best.with_name("model_best.prev.pt") if kept else best
    assert there.read_bytes() == content and best.exists() != kept
