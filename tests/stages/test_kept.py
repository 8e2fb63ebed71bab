"""Whatever ends a training that is sound in memory, no step that is done is lost."""

import os
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import torch

from ann2snn.diffusion.ddpm import DDPM
from ann2snn.errors import MemoryUserError, UserError, is_out_of_memory
from ann2snn.nets import UNet
from ann2snn.stages import finetune, train
from tests.disks import may_unshare, small_shared_memory
from tests.helpers import slow
from tests.scripts import SAMPLING, check, processes, script, train_flags
from tests.stages.direct_runs import training
from tests.stages.test_faults import at_step, folder_of_images, lazily  # noqa: F401 - a fixture
from tests.stages.test_resume import assert_same_run


def content(logdir: Path) -> dict:
    return torch.load(logdir / "ckpt.pt", weights_only=True)


def last_line(done) -> str:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.stderr.strip().splitlines()[-1]


# ---- images ---------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, 60)


def replace_by_text(path: Path) -> None:
    path.write_text("no image")


@pytest.mark.parametrize(("spoil", "workers"), [slow(truncate, 0), (Path.unlink, 2), slow(replace_by_text, 2)])
def test_images_that_fail_in_mid_training_cost_no_step(tmp_path, folder_of_images, spoil, workers):  # noqa: F811
    images, whole, hurt = tmp_path / "images", tmp_path / "whole", tmp_path / "hurt"
    shutil.copytree(folder_of_images, images)
    flags = ["--dataset_type=folder", f"--data_dir={images}", "--channels=1", f"--num_workers={workers}"]
    flags += ["--save_step=0"]
    check(script("ANN_train.py", *train_flags(whole, 14), *flags, before=lazily()))
    spoil_all = lazily(lambda _: [spoil(path) for path in images.glob("*.png")], 5)
    told = last_line(script("ANN_train.py", *train_flags(hurt, 14), *flags, before=spoil_all))
    step = content(hurt)["step"]
    assert 5 <= step < 14 and told.startswith("error: cannot read image ") and f"step {step} is kept in {hurt}" in told
    shutil.copytree(folder_of_images, images, dirs_exist_ok=True)
    assert f"at step {step}" in check(script("ANN_train.py", *train_flags(hurt, 14), *flags, before=lazily()))
    assert_same_run(whole, hurt)


# ---- memory ---------------------------------------------------------------------------------------------------------


def demand_memory() -> None:
    torch.empty(2**50)


def exhaust_after_forward(step: int, demand=demand_memory):
    """For `before`: memory runs out in the middle of a step, when batch norms have counted its images already."""

    def before() -> None:
        original = DDPM.loss

        def loss(*args):
            losses = original(*args)
            if steps[0] == step:
                demand()
            return losses

        steps = [-1]
        at_every_step(steps)
        DDPM.loss = loss

    return before


def at_every_step(steps: list) -> None:
    """Keep the number of the step in `steps[0]`."""
    original = train.Trainer.train_step

    def train_step(self, *batch):
        steps[0] = self.step
        return original(self, *batch)

    train.Trainer.train_step = train_step


@pytest.mark.parametrize("arch", ["unet", slow("fsddim")])
def test_memory_that_runs_out_within_a_step_is_one_line_and_costs_no_step_before(tmp_path, arch):
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    name = "ANN_train.py" if arch == "unet" else "SNN_train.py"
    flags = (lambda folder: train_flags(folder, 8)) if arch == "unet" else (lambda folder: training(arch, folder, 8))
    check(script(name, *flags(whole)))
    told = last_line(script(name, *flags(hurt), "--save_step=0", before=exhaust_after_forward(5)))
    assert told.startswith("error: out of memory") and f"step 5 is kept in {hurt}" in told
    assert "--batch_size" in told and "--accumulate" in told
    check(script(name, *flags(hurt)))
    assert_same_run(whole, hurt)


def test_memory_that_runs_out_at_the_first_step_leaves_nothing_that_hinders_a_smaller_batch(tmp_path):
    last_line(script("ANN_train.py", *train_flags(tmp_path, 2), before=exhaust_after_forward(0)))
    assert not (tmp_path / "ckpt.pt").exists()
    check(script("ANN_train.py", *train_flags(tmp_path, 2), "--batch_size=4"))


def limited(megabytes: int):
    """For `before`: so much more than it has now is all that the process may get."""

    def before() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)

    return before


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("ANN_train.py", ["--train", "--total_steps=2", "--batch_size=100000", "--T=50", "--ch_mult=1", "--ch=64"]),
        ("SNN_ft.py", ["--fine_tune", "--ft_steps=2", "--ft_batch_size=20000"]),
    ],
)
def test_a_batch_that_is_too_large_for_the_machine_is_one_line_in_all_stages(finished_run, tmp_path, name, flags):
    shutil.copy(finished_run[0] / "ckpt.pt", tmp_path)
    shape = ["--dataset_type=fashion_mnist_10k", "--img_size=8", "--norm_groups=4", "--num_threads=1", *SAMPLING]
    logdir = tmp_path / "new" if "--train" in flags else tmp_path
    told = last_line(script(name, *flags, *shape, f"--logdir={logdir}", before=limited(100)))
    assert told.startswith("error: out of memory") and "--batch_size" in told and "--accumulate" in told


def exhaust_in_network() -> None:
    """Memory runs out while a network samples: on a CPU its batches have a fixed size."""

    def forward(*_):
        demand_memory()

    UNet.forward = forward


@pytest.mark.parametrize(
    ("name", "flags"), [("SNN_conversion.py", ["--eval"]), ("evaluate.py", ["--sample_only", "--num_images=2"])]
)
def test_memory_that_runs_out_while_sampling_is_one_line(finished_run, tmp_path, name, flags):
    shutil.copy(finished_run[0] / "ckpt.pt", tmp_path)
    shape = ["--dataset_type=fashion_mnist_10k", "--img_size=8", "--norm_groups=4", "--num_threads=1", *SAMPLING]
    told = last_line(script(name, *flags, *shape, f"--logdir={tmp_path}", before=exhaust_in_network))
    assert told.startswith("error: out of memory")


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("shape mismatch"), False),
        (OSError(28, "No space left on device"), False),
        (UserError("the image says: out of memory"), False),
    ],
)
def test_what_counts_as_memory_that_ran_out(error, is_one):
    assert is_out_of_memory(error) == is_one
    assert str(MemoryUserError(error)).lower().count("out of memory") <= 2


# ---- processes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    logdir = tmp_path_factory.mktemp("two")
    for done in processes(2, "ANN_train.py", *train_flags(logdir, 8)):
        check(done)
    return logdir


@pytest.mark.parametrize("victim", ["killed", slow("image")])
def test_a_process_that_is_lost_costs_no_step_that_all_had_done(tmp_path, two_processes, victim):
    def lose() -> None:
        if os.environ["RANK"] == "1":
            at_step(5, end)()

    def end(_) -> None:
        if victim == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("cannot read image 5.png")

    hurt = tmp_path
    main, other = processes(2, "ANN_train.py", *train_flags(hurt, 8), "--save_step=0", before=lose)
    assert (main.returncode, other.returncode) == (1, -signal.SIGKILL if victim == "killed" else 2), main.stderr
    assert content(hurt)["step"] == 5 and "step 5 is kept" in main.stderr and "Traceback" not in main.stderr
    for done in processes(2, "ANN_train.py", *train_flags(hurt, 8)):
        check(done)
    assert_same_run(two_processes, hurt)


def test_an_error_after_a_loss_that_is_no_number_saves_nothing(tmp_path):
    def spoil(self) -> None:
        with torch.no_grad():
            next(self.net.parameters()).fill_(float("inf"))

    refused_flags = [*train_flags(tmp_path, 8), "--save_step=0", "--log_step=1"]
    told = last_line(script("ANN_train.py", *refused_flags, before=at_step(5, spoil)))
    assert "not finite" in told and not (tmp_path / "ckpt.pt").exists()


# ---- the folder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lock", "folder"])
def test_a_run_that_has_lost_its_folder_keeps_its_state_elsewhere_and_stops(tmp_path, monkeypatch, how):
    elsewhere, logdir = tmp_path / "tmp", tmp_path / "run"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))

    def lose(_) -> None:
        if how == "folder":
            shutil.rmtree(logdir)
            logdir.mkdir()
        else:
            (logdir / ".train.lock").unlink()
        (logdir / "ckpt.pt").write_text("of the second run")

    told = last_line(script("ANN_train.py", *train_flags(logdir, 8), before=at_step(6, lose)))
    (rescued,) = elsewhere.glob("ann2snn-rescue-*.pt")
    assert ".train.lock is not the file" in told and str(rescued) in told
    assert (logdir / "ckpt.pt").read_text() == "of the second run"
    assert torch.load(rescued, weights_only=True)["step"] == 8


def test_fine_tuning_that_has_lost_its_folder_keeps_its_finished_blocks(finished_run, tmp_path, monkeypatch):
    elsewhere, logdir = tmp_path / "tmp", tmp_path / "run"
    elsewhere.mkdir()
    logdir.mkdir()
    shutil.copy(finished_run[0] / "ckpt.pt", logdir)
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    flags = ["--fine_tune", f"--logdir={logdir}", "--ft_steps=1", "--ft_batch_size=4", "--sample_step=0"]
    flags += ["--gap_images=0", "--num_threads=1"]

    def before() -> None:
        original, calls = finetune.tune_block, []

        def tune_block(*args):
            calls.append(args)
            if len(calls) == 3:
                shutil.rmtree(logdir / "SNN_2bit_ft")
            return original(*args)

        finetune.tune_block = tune_block

    told = last_line(script("SNN_ft.py", *flags, before=before))
    (rescued,) = elsewhere.glob("ann2snn-rescue-*.pt")
    assert str(rescued) in told
    (logdir / "SNN_2bit_ft").mkdir()
    shutil.copy(rescued, logdir / "SNN_2bit_ft" / "ft_state.pt")
    assert "3 blocks done" in check(script("SNN_ft.py", *flags))
    gaps = torch.load(logdir / "SNN_2bit_ft" / "ft_state.pt", weights_only=True)["gaps"]
    best = torch.load(logdir / "SNN_2bit_ft" / "model_best.pt", weights_only=True)["prediction_gap"]
    assert best == min(gaps[3:]) or min(gaps[:3]) < min(gaps[3:])


# ---- shared memory --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not may_unshare(), reason="no name spaces here")
def test_batches_larger_than_shared_memory_reach_the_training(tmp_path, folder_of_images):  # noqa: F811
    """A container has 64 MB; here 60 KB and batches of 77 KB stand for it."""
    flags = ["--dataset_type=folder", f"--data_dir={folder_of_images}", "--channels=1", "--num_workers=2"]
    flags += ["--batch_size=1200"]

    def before() -> None:
        signal.alarm(60)  # nothing would come, and nobody would hear of it
        small_shared_memory("60k")
        lazily()()

    check(script("ANN_train.py", *train_flags(tmp_path, 2), *flags, before=before))
    assert content(tmp_path)["step"] == 2
