"""The fault campaign in short, and that its checks see what they are for."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from ann2snn.checkpoints import checkpoint
from benchmarks import fault_checks as checks
from benchmarks import fault_kinds as kinds
from benchmarks import fault_runs as runs
from benchmarks import faults
from tests.helpers import random_ann


@pytest.mark.slow
def test_a_short_campaign_finds_nothing_lost(tmp_path, capsys):
    out = tmp_path / "kills.json"
    code = faults.main(["--kills=6", "--tiny", "--nproc=0", f"--workdir={tmp_path}/runs", f"--out={out}"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    content = json.loads(out.read_text())
    kills = content["kills"]
    assert len(kills) == 6 and {kill["stage"] for kill in kills} >= {"train", "convert", "fine-tune"}
    assert all(kill["recovered"] and not kill["different"] and not kill["unloadable"] for kill in kills)
    assert all(set(kill["codes"]) <= {-signal.SIGKILL, 2, 129, 143} for kill in kills)
    assert printed.out.count("\n") >= 6 and "mean steps lost" in printed.out
    assert str(tmp_path) not in out.read_text()
    assert not list((tmp_path / "runs").iterdir())


@pytest.fixture
def folder(tmp_path):
    """Some of the files of a run."""
    net = random_ann()
    config = {"unet": net.config.to_dict(), "diffusion": net.diffusion.to_dict()}
    payload = {"kind": "ann", "format": 1, "ema_model": net.state_dict(), "step": 7, "config": config, "source": "a"}
    checkpoint.save(tmp_path / "ckpt.pt", payload)
    np.savez(tmp_path / "stats.npz", mu=np.arange(8.0))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "real.png")
    (tmp_path / "gap.json").write_text('{"gap": 0.5, "seconds": 1.5}')
    (tmp_path / "log.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "loss": 0.5}\n')
    (tmp_path / "snn_eval.txt").write_text('{"FD": 3.0, "date": "today"}\n')
    return tmp_path


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def without_hash(path):
    torch.save({"ema_model": checkpoint.read(path)["ema_model"]}, path)


BAD = [("ckpt.pt", flip), ("ckpt.pt", cut), ("ckpt.pt", without_hash), ("stats.npz", cut), ("real.png", cut)]
BAD += [("gap.json", cut), ("log.jsonl", cut), ("snn_eval.txt", cut)]


@pytest.mark.parametrize(("name", "spoil"), BAD, ids=[f"{name}-{spoil.__name__}" for name, spoil in BAD])
def test_a_file_that_cannot_be_loaded_is_found(folder, name, spoil):
    assert checks.unloadable(folder) == []
    spoil(folder / name)
    (found,) = checks.unloadable(folder)
    assert found.startswith(f"{name}: ")


def test_different_results_are_found_and_equal_ones_are_not(folder):
    expected = checks.fingerprints(folder)
    payload = checkpoint.read(folder / "ckpt.pt")
    checkpoint.save(folder / "ckpt.pt", payload | {"source": "b"})  # another file's hash, and another order
    checkpoint.save(folder / "ckpt.prev.pt", payload | {"step": 6})
    (folder / "gap.json").write_text('{"seconds": 9.0, "gap": 0.5}')
    (folder / "snn_eval.txt").write_text('{"FD": 3.0, "date": "x"}\n{"date": "y", "FD": 3.0}\n')
    assert checks.differences(checks.fingerprints(folder), expected) == []
    state = {name: value.clone() for name, value in payload["ema_model"].items()}
    next(iter(state.values())).view(-1)[0] += 1e-6
    checkpoint.save(folder / "ckpt.pt", payload | {"ema_model": state})
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (folder / "snn_eval.txt").write_text('{"FD": 3.0}\n{"FD": 3.000001}\n')
    (folder / "gap.json").unlink()
    shutil.copy(folder / "real.png", folder / "more.png")
    found = checks.differences(checks.fingerprints(folder), expected)
    assert found == ["ckpt.pt", "gap.json", "log.jsonl", "more.png", "snn_eval.txt"]


def test_weights_are_compared_relatively(folder, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(checks, "RESULTS_WEIGHTS", [("ckpt.pt", "ema_model")])
    other = tmp_path_factory.mktemp("other")
    payload = checkpoint.read(folder / "ckpt.pt")
    larger = {name: value * 1.001 for name, value in payload["ema_model"].items()}
    checkpoint.save(other / "ckpt.pt", payload | {"ema_model": larger})
    assert checks.weight_distance(other, folder) == pytest.approx(1e-3, rel=1e-4)


def kill_of(how, codes):
    return faults.Kill(1, "train", runs.ONE, how, 0.1, False, codes=codes)


@pytest.mark.parametrize(
    ("how", "right", "wrong"),
    [
        ("SIGKILL", [-9], [1]),
        ("SIGTERM", [143], [-15]),
        ("SIGTERM of all", [143, 1], [1, 1]),
        ("SIGKILL of one", [1, -9], [2, -9]),
        ("SIGKILL of a worker", [1], [143]),
        ("SIGHUP of the launcher", [129], [-1]),
        (kinds.DEAF, [143], [1]),
        (kinds.FULL, [1, 2], [1]),
        (kinds.UNLOCKED, [2], [143]),
        (kinds.BROKEN, [2], [-9]),
    ],
)
def test_exit_codes_are_held_to_what_is_promised(how, right, wrong):
    assert faults.wrong_codes(kill_of(how, right), "") == []
    assert faults.wrong_codes(kill_of(how, wrong), "") != []
    assert faults.wrong_codes(kill_of(how, right), "Traceback (most recent call last)") != []


def test_steps_lost_are_those_since_the_checkpoint(folder):
    (folder / "log.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(9)))
    assert checks.position("train", folder, 0) == ("step 9, checkpoint 7", 2)
    later = (folder / "log.jsonl").stat().st_mtime_ns + 1  # an attempt that has not touched the log lost nothing
    assert checks.position("train", folder, later)[1] == 0


def test_a_stage_that_fails_without_a_kill_stops_the_campaign(tmp_path, monkeypatch):
    stage = runs.Stage("train", "ANN_train.py", ("--train", "--bit=1", f"--logdir={tmp_path}/run"), None, True)
    monkeypatch.setattr(runs, "pipeline", lambda *_: [stage])
    with pytest.raises(faults.StageError, match="bit"):
        faults.make_reference(tmp_path / "run", runs.ONE, tmp_path, runs.TINY)


def test_faults_of_the_surroundings_are_there_and_then_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "IMAGES", 3)
    images, lock = tmp_path / "images", tmp_path / ".train.lock"
    kinds.write_images(images)
    whole = {path.name: path.read_bytes() for path in images.iterdir()}
    assert len(whole) == 3
    stage = runs.Stage("train", "ANN_train.py", (), lock, True)
    with kinds.provoked(kinds.BROKEN, stage, tmp_path, images):
        assert all(path.stat().st_size == 60 for path in images.iterdir())
    assert {path.name: path.read_bytes() for path in images.iterdir()} == whole
    lock.touch()
    with kinds.provoked(kinds.UNLOCKED, stage, tmp_path, images):
        assert not lock.exists()
    with kinds.own_disk(tmp_path / "disk", separate=True) as mounted:
        if mounted:
            with kinds.provoked(kinds.FULL, stage, tmp_path / "disk", images), pytest.raises(OSError, match="space"):
                (tmp_path / "disk" / "more").write_bytes(bytes(9000))
            (tmp_path / "disk" / "more").write_bytes(bytes(9000))
    assert not (tmp_path / "disk").exists()


def test_a_rescued_state_is_brought_back_and_only_where_a_stage_resumes(tmp_path):
    (tmp_path / "ann2snn-rescue-logs-7.pt").write_bytes(b"state")
    train, convert = (runs.Stage(name, "", (), None, True) for name in ("train", "convert"))
    with pytest.raises(ValueError, match="convert"):
        kinds.bring_back(tmp_path, convert, tmp_path)
    assert kinds.bring_back(tmp_path, train, tmp_path) == "ann2snn-rescue-logs-7.pt"
    assert (tmp_path / "ckpt.pt").read_bytes() == b"state" and kinds.bring_back(tmp_path, train, tmp_path) == ""


def test_a_log_may_lack_lines_after_a_full_disk_but_not_say_anything_else(tmp_path):
    whole, short, other = (tmp_path / name for name in ("whole", "short", "other"))
    whole.write_text('{"step": 0, "seconds": 1}\n{"step": 1, "seconds": 2}\n')
    short.write_text('{"step": 1, "seconds": 3}\n{"ste')
    other.write_text('{"step": 2, "seconds": 3}\n')
    assert not checks.differences_of_log(short, whole) and checks.differences_of_log(other, whole)
