"""Nothing that a run is made of changes in silence when it is continued; what may change on purpose is written down."""

import json
import os
import shutil

import pytest
import torch

from ann2snn.distributed.runtime import computes_bfloat16
from ann2snn.run.lines import read_log
from tests.helpers import slow
from tests.scripts import SAMPLING, check, script, train_flags
from tests.stages.direct_runs import tuning
from tests.stages.test_bad_input import refused, snapshot
from tests.stages.test_faults import at_step, folder_of_images, lazily, spoil  # noqa: F401 - a fixture

LOW = pytest.mark.skipif(not computes_bfloat16(torch.device("cpu")), reason="no bfloat16 here: --amp does nothing")


def train_settings(logdir) -> dict:
    return torch.load(logdir / "ckpt.pt", weights_only=True)["config"]["train"]


def resumed_with(folder) -> list[tuple[int, dict]]:
    return [(e["step"], e["resumed_with"]) for e in read_log(folder / "log.jsonl") if "resumed_with" in e]


def files(folder) -> dict:
    return {path: told for path, told in snapshot(folder).items() if not path.endswith(".lock")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("trained") / "run"
    check(script("ANN_train.py", *train_flags(logdir, 2)))
    return logdir


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--flip", ["flip=None, now flip=True", "--resume_with=flip"]),
        pytest.param("--amp", ["amp=False, now amp=True", "--resume_with=amp"], marks=LOW),
        ("--act_init=0.5", ["act_init=calibrate, now act_init=0.5"]),
        ("--grad_clip=0.1", ["grad_clip=1.0, now grad_clip=0.1", "--resume_with=grad_clip"]),
        ("--resume_with=bit", ["--resume_with=bit", "may name lr"]),
    ],
)
def test_what_a_training_does_not_take_up_with(trained, flag, words):
    before = files(trained)
    refused(script("ANN_train.py", *train_flags(trained, 4), flag), *words)
    assert files(trained) == before


def test_another_way_to_write_the_same_is_no_change(tmp_path):
    check(script("ANN_train.py", *train_flags(tmp_path, 2), "--act_init=0.5"))
    check(script("ANN_train.py", *train_flags(tmp_path, 4), "--act_init=0.50", "--noflip"))
    assert resumed_with(tmp_path) == []


def test_images_that_are_not_those_of_before(tmp_path, folder_of_images):  # noqa: F811
    images, moved, logdir = tmp_path / "images", tmp_path / "moved", tmp_path / "run"
    shutil.copytree(folder_of_images, images)
    flags = ["--dataset_type=folder", "--channels=1"]

    def command(folder, steps, *extra):
        return ["ANN_train.py", *train_flags(logdir, steps), *flags, f"--data_dir={folder}", *extra]

    check(script(*command(images, 2)))
    assert str(images) not in json.dumps(train_settings(logdir)), "a path is no content"
    images.rename(moved)
    check(script(*command(moved, 3)))
    (moved / "7.png").rename(moved / "70.png")
    refused(script(*command(moved, 4)), "cannot resume", "data_dir=40 images", "--resume_with=data_dir")
    (moved / "70.png").rename(moved / "7.png")
    (moved / "8.png").write_bytes((moved / "8.png").read_bytes() + b"\0")
    refused(script(*command(moved, 4), before=lazily()), "cannot resume", "data_dir=40 images")
    (moved / "8.png").unlink()
    refused(script(*command(moved, 4)), "data_dir=40 images", "now data_dir=39 images")
    refused(script(*command(moved, 4, "--resume_with=lr")), "data_dir=40 images")
    refused(script("ANN_train.py", *train_flags(logdir, 4)), "dataset_type=folder", "--resume_with=dataset_type")
    assert "data_dir=39 images" in check(script(*command(moved, 4, "--resume_with=data_dir")))
    [(step, changes)] = resumed_with(logdir)
    assert step == 3 and [told.split()[0] for told in changes["data_dir"]] == ["40", "39"]
    check(script(*command(moved, 5)))


def test_a_run_that_diverged_goes_on_with_other_settings_which_are_written_down(tmp_path):
    """As the message about the loss says."""
    done = script("ANN_train.py", *train_flags(tmp_path, 8), before=at_step(5, spoil))
    assert done.returncode == 2 and "--resume_with=lr,grad_clip" in done.stderr
    slower = ["--lr=1e-4", "--grad_clip=0.5", "--resume_with=lr,grad_clip"]
    out = check(script("ANN_train.py", *train_flags(tmp_path, 6), *slower))
    assert "at step 4 with lr=0.0001 (was 0.001), grad_clip=0.5 (was 1.0)" in out
    assert resumed_with(tmp_path) == [(4, {"lr": [0.001, 0.0001], "grad_clip": [1.0, 0.5]})]
    rates = [entry["lr"] for entry in read_log(tmp_path / "log.jsonl") if "lr" in entry]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3, 1e-4, 1e-4])
    assert train_settings(tmp_path)["lr"] == 1e-4
    check(script("ANN_train.py", *train_flags(tmp_path, 7), *slower))  # the same command again changes nothing more
    assert len(resumed_with(tmp_path)) == 1
    refused(script("ANN_train.py", *train_flags(tmp_path, 8)), "lr=0.0001, now lr=0.001")


def test_a_checkpoint_that_does_not_tell_is_continued(trained, tmp_path):
    """Those of before knew neither the data nor --amp."""
    from ann2snn.checkpoints import checkpoint

    stored = checkpoint.read(trained / "ckpt.pt")
    for name in ("amp", "data_dir"):
        del stored["config"]["train"][name]
    checkpoint.save(tmp_path / "ckpt.pt", stored)
    check(script("ANN_train.py", *train_flags(tmp_path, 3), "--amp"))


def test_a_smaller_batch_and_another_dropout_on_purpose(trained, tmp_path):
    shutil.copy(trained / "ckpt.pt", tmp_path)
    flags = ["--batch_size=4", "--dropout=0", "--lr_decay=cosine", "--seed=3"]
    refused(script("ANN_train.py", *train_flags(tmp_path, 4), *flags), "--resume_with=")
    names = "--resume_with=batch_size,dropout,lr_decay,total_steps,seed"
    check(script("ANN_train.py", *train_flags(tmp_path, 4), *flags, names))
    assert resumed_with(tmp_path)[0][1].keys() == {"batch_size", "dropout", "lr_decay", "total_steps", "seed"}


# ---- fine-tuning ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half_tuned(trained, tmp_path_factory):
    """(logdir, flags) of a fine-tuning on the sampler's states that was stopped at its third block."""
    import signal

    from ann2snn.stages import finetune

    logdir = tmp_path_factory.mktemp("tuned")
    shutil.copy(trained / "ckpt.pt", logdir)
    flags = ["--fine_tune", f"--logdir={logdir}", "--ft_steps=1", "--ft_batch_size=4", "--ft_inputs=sampler"]
    flags += ["--sample_step=0", "--gap_images=0", "--num_threads=1", "--lr=1e-4", *SAMPLING]

    def before():
        original, calls = finetune.tune_block, []

        def tune_block(*args):
            calls.append(args)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        finetune.tune_block = tune_block

    assert script("SNN_ft.py", *flags, before=before).returncode == -signal.SIGKILL
    return logdir, flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sampler_steps=4"], ["sampler_steps=3, now sampler_steps=4", "--resume_with=sampler_steps"]),
        slow(["--eta=1"], ["eta=0.0, now eta=1.0"]),
        slow(["--sampler=ddpm_strided"], ["sampler=ddim, now sampler=ddpm_strided"]),
        slow(["--ddim_epsilon=network"], ["ddim_epsilon=recomputed, now ddim_epsilon=network"]),
        slow(["--noclip_x0"], ["clip_x0=True, now clip_x0=False"]),
        slow(["--var_type=fixedsmall"], ["var_type=fixedlarge, now var_type=fixedsmall"]),
        pytest.param(["--amp"], ["amp=False, now amp=True"], marks=LOW),
        (["--ft_inputs=data"], ["inputs=sampler, now inputs=data", "--resume_with=ft_inputs"]),
        (["--ft_learn=thresholds", "--resume_with=lr"], ["learn="]),
    ],
)
def test_what_a_fine_tuning_does_not_take_up_with(half_tuned, flags, words):
    logdir, own = half_tuned
    before = files(logdir)
    refused(script("SNN_ft.py", *own, *flags), "cannot resume", *words)
    assert files(logdir) == before


def test_other_images_and_another_rate_in_fine_tuning(half_tuned, tmp_path, folder_of_images):  # noqa: F811
    logdir, own = tmp_path / "run", [flag for flag in half_tuned[1] if not flag.startswith("--logdir")]
    shutil.copytree(half_tuned[0], logdir)
    flags = [*own, f"--logdir={logdir}", "--dataset_type=folder", f"--data_dir={folder_of_images}"]
    refused(script("SNN_ft.py", *flags), "dataset_type=fashion_mnist_10k, now dataset_type=folder")
    flags += ["--lr=1e-5", "--resume_with=dataset_type,lr"]
    assert "2 blocks done with lr=1e-05 (was 0.0001), dataset_type=folder" in check(script("SNN_ft.py", *flags))
    [(step, changes)] = resumed_with(logdir / "SNN_2bit_ft")
    assert step == 2 and changes.keys() == {"lr", "dataset_type", "data_dir"}


def test_sdm_takes_them_by_the_names_of_fine_tuning(direct_runs, tmp_path):
    shutil.copy(direct_runs["sddpm"][0] / "ckpt.pt", tmp_path)
    flags = tuning(tmp_path, 1, "--gap_images=0", "--gen_images=0")
    check(script("SNN_ft.py", *flags))
    flags += ["--ft_steps=2", "--ft_batch_size=2"]
    refused(script("SNN_ft.py", *flags), "batch_size=4, now batch_size=2")
    check(script("SNN_ft.py", *flags, "--resume_with=ft_batch_size"))
    assert resumed_with(tmp_path / "SDM_2T") == [(1, {"batch_size": [4, 2]})]
