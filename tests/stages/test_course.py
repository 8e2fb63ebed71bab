"""`ann2snn autoencoder` and `ann2snn fad` lose no training: stopped, killed, refused by the disk, they go on as one."""

import functools
import itertools
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ann2snn import fad
from ann2snn.commands import autoencoder
from ann2snn.errors import UserError
from ann2snn.stages import autoencoder as autoencoder_stage
from ann2snn.stages import course, fad_train
from tests.disks import fill, small_disk
from tests.processes import child_inside, ended, fork

STEPS = 4
BOTH = pytest.mark.parametrize("kind", ["autoencoder", "fad"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of noise, in train and test."""
    root, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part in ("train", "test"):
        (root / part).mkdir()
        for i in range(12):
            Image.fromarray(generator.integers(0, 256, (32, 32), np.uint8)).save(root / part / f"{i:02}.png")
    return root


def run(kind: str, data: Path, folder: Path, *more: str) -> int:
    """Train in this process; the exit code."""
    flags = ["--dataset_type=folder", "--channels=1", f"--data_dir={data}", "--batch_size=5", "--device=cpu"]
    flags += [f"--steps={STEPS}", "--num_threads=1", f"--out={out_of(kind, folder)}"]
    if kind == "fad":
        return fad.main([*flags, "--latent=5", *more])
    return autoencoder.main([*flags, "--img_size=8", "--halvings=1", "--width=8", "--latent_channels=2", *more])


def out_of(kind: str, folder: Path) -> Path:
    return folder / ("net.pth" if kind == "fad" else "net.pt")


def state_of(kind: str, folder: Path) -> Path:
    return course.unfinished_path(out_of(kind, folder))


def made(folder: Path) -> dict[str, bytes | dict]:
    """Content of the files: weights, arrays, and the bytes of pictures."""
    content: dict[str, bytes | dict] = {}
    for path in folder.glob("[!.]*"):
        if path.suffix == ".png":
            content[path.name] = path.read_bytes()
        else:
            whole = np.load(path) if path.suffix == ".npz" else torch.load(path, weights_only=True)
            state = whole.get("ema_model", whole)
            content[path.name] = {key: np.asarray(value).tobytes() for key, value in state.items()}
    return content


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """What uninterrupted trainings make, by kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("autoencoder", "fad")}
    assert [run(kind, data, folder) for kind, folder in folders.items()] == [0, 0]
    assert len(made(folders["autoencoder"])) == 2 and len(made(folders["fad"])) == 3, "and no state is left"
    return {kind: made(folder) for kind, folder in folders.items()}


def at_step(monkeypatch, step: int, act) -> None:
    """Call `act` once, right before step `step` + 1 is taken."""
    advance, done = course.Course._advance, []

    def advanced(self, loss):
        if self.step == step and not done:
            done.append(step)
            act()
        advance(self, loss)

    monkeypatch.setattr(course.Course, "_advance", advanced)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        *(("autoencoder", number) for number in (signal.SIGTERM, signal.SIGKILL)),
        ("fad", signal.SIGHUP),
        pytest.param("fad", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_the_same_command_goes_on_and_ends_with_the_same_files(
    data, whole, tmp_path, monkeypatch, capsys, kind, number
):
    with monkeypatch.context() as patched:
        patched.setattr(course, "SECONDS", 0)
        at_step(patched, 2, lambda: os.kill(os.getpid(), number))
        if number == signal.SIGKILL:
            assert ended(fork(lambda: run(kind, data, tmp_path))) == -number
        else:
            assert run(kind, data, tmp_path) == 128 + number
            assert "stopped at step 3; run the same command to continue" in capsys.readouterr().out
    assert not out_of(kind, tmp_path).exists()
    assert run(kind, data, tmp_path, "--seed=1") == 2 and "--seed" in capsys.readouterr().err
    assert run(kind, data, tmp_path) == 0
    assert f"at step {2 if number == signal.SIGKILL else 3}" in capsys.readouterr().out
    assert made(tmp_path) == whole[kind]


@BOTH
def test_a_disk_that_is_full_is_known_at_once_and_costs_nothing_later(data, whole, monkeypatch, capsys, kind):
    with small_disk("64m") as disk, monkeypatch.context() as patched:
        fill(disk)
        at_step(patched, 0, lambda: pytest.fail("a training that cannot be kept has begun"))
        assert run(kind, data, disk) == 2 and "No space left" in capsys.readouterr().err
    with small_disk("64m") as disk, small_disk("64m") as rescue:
        with monkeypatch.context() as patched:
            patched.setattr("tempfile.tempdir", str(rescue))
            patched.setattr(course, "SECONDS", 0)
            at_step(patched, 2, lambda: fill(disk))
            assert run(kind, data, disk) == 2
        said, [kept] = capsys.readouterr().err, rescue.glob("*.pt")
        assert f"step 3 is kept in {kept}: copy it to {state_of(kind, disk)} to continue" in said
        (disk / "filler").unlink()
        shutil.copy(kept, state_of(kind, disk))
        assert run(kind, data, disk) == 0
        assert made(disk) == whole[kind]


@BOTH
def test_an_image_that_breaks_costs_no_step(data, whole, tmp_path, monkeypatch, capsys, kind):
    stage = fad_train if kind == "fad" else autoencoder_stage
    batches = stage.batches

    def breaking(*args, **options):
        yield from itertools.islice(batches(*args, **options), 3)
        raise UserError("cannot read image 07.png")

    with monkeypatch.context() as patched:
        patched.setattr(stage, "batches", breaking)
        assert run(kind, data, tmp_path) == 2
    assert f"07.png; step 3 is kept in {state_of(kind, tmp_path)}" in capsys.readouterr().err
    assert run(kind, data, tmp_path) == 0 and made(tmp_path) == whole[kind]


@BOTH
def test_a_second_training_of_the_same_file_is_refused_before_it_trains(data, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setattr(course, "run_lock", functools.partial(course.run_lock, patience=0))
    with child_inside(lambda: course.owning(out_of(kind, tmp_path))):
        assert run(kind, data, tmp_path) == 2
    said = capsys.readouterr().err
    assert "in use by another run" in said and "choose another --out" in said
    assert not state_of(kind, tmp_path).exists()


@pytest.mark.parametrize(("kind", "file"), [("autoencoder", 0), ("fad", 0), ("fad", 1)])
def test_killed_between_its_files_it_writes_the_missing_ones(data, whole, tmp_path, monkeypatch, capsys, kind, file):
    """And takes no other network of the same name for its own."""
    stage, last = (fad_train, "make_stats") if kind == "fad" else (autoencoder_stage, "save_grid")

    def killed(path_or_images, *rest, **options) -> None:
        if kind == "autoencoder" or file == 0 or Path(path_or_images).stem.endswith("_eval"):
            os.kill(os.getpid(), signal.SIGKILL)
        make_stats(path_or_images, *rest)

    make_stats = fad_train.make_stats
    monkeypatch.setattr(stage, last, killed)
    assert ended(fork(lambda: run(kind, data, tmp_path))) == -signal.SIGKILL
    monkeypatch.undo()
    out = out_of(kind, tmp_path)
    assert out.exists() and len(made(tmp_path)) < len(whole[kind]) + 1
    if file == 0:
        other = tmp_path / "other"
        assert run(kind, data, other, "--seed=1") == 0
        own = out.read_bytes()
        shutil.copy(out_of(kind, other), out)
        foreign = out.read_bytes()
        capsys.readouterr()
        assert run(kind, data, tmp_path) == 2 and "exists, and is another" in capsys.readouterr().err
        assert out.read_bytes() == foreign
        out.write_bytes(own)
        shutil.rmtree(other)
    assert run(kind, data, tmp_path) == 0 and made(tmp_path) == whole[kind]


@BOTH
def test_a_training_that_diverged_or_took_no_step_stands_in_nobodys_way(
    data, whole, tmp_path, monkeypatch, capsys, kind
):
    """Or it could not be begun again with the lower rate that the message asks for."""

    def act(step, do):
        with monkeypatch.context() as patched:
            at_step(patched, step, do)
            return run(kind, data, tmp_path, "--lr=1e-4")

    def diverge() -> None:
        raise UserError("killed in the first step")

    assert act(0, diverge) == 2 and state_of(kind, tmp_path).exists()
    with monkeypatch.context() as patched:
        patched.setattr(course, "SECONDS", 0)
        update = course.Course._advance

        def advanced(self, loss):
            update(self, loss)
            if self.step == 3:
                next(self.net.parameters()).data.fill_(np.nan)

        patched.setattr(course.Course, "_advance", advanced)
        assert run(kind, data, tmp_path, "--lr=1e-4") == 2
    assert "lower --lr" in capsys.readouterr().err and not state_of(kind, tmp_path).exists()
    assert run(kind, data, tmp_path) == 0 and made(tmp_path) == whole[kind]
