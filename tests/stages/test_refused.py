"""A refused command leaves the folder of a run as it was, the flags that made the run above all."""

import shutil

import pytest

from ann2snn.cli import settings
from ann2snn.config.names import both_values
from ann2snn.files.lock import run_lock
from tests.processes import child_inside
from tests.scripts import SAMPLING, check, script, train_flags
from tests.stages.direct_runs import training, tuning
from tests.stages.test_bad_input import refused, snapshot
from tests.stages.test_faults import impatient

FLAGS = "flags of an earlier command"
NAMES = ("flagfile.txt", "flagfile.finetune.txt", "flagfile.evaluate.txt")


def prepared(folder, source):
    """A run folder with the checkpoint of `source`, and the flags of commands that were accepted."""
    folder.mkdir()
    shutil.copy(source / "ckpt.pt", folder)
    for name in NAMES:
        (folder / name).write_text(FLAGS)
    return folder


def content(folder) -> dict:
    """All files but locks, which a run takes before it looks at the checkpoint."""
    return {path: told for path, told in snapshot(folder).items() if not path.endswith(".lock")}


@pytest.fixture
def ann(finished_run, tmp_path):
    return prepared(tmp_path / "ann", finished_run[0])


@pytest.fixture
def sddpm(direct_runs, tmp_path):
    return prepared(tmp_path / "sddpm", direct_runs["sddpm"][0])


def test_refusals_call_settings_by_the_flags_they_come_from():
    for flags in (*(flags for flags, _ in settings.ARCHITECTURES.values()), settings.DIFFUSION_FLAGS):
        for flag, field in flags.items():
            assert both_values(field, 1, 2) == f"{field}=1, now {field}=2 (--{flag})"


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--beta_schedule=cosine", ["cannot resume", "schedule=linear, now schedule=cosine (--beta_schedule)"]),
        ("--lr=0.5", ["cannot resume", "lr=0.5"]),
        ("--bit=3", ["cannot resume", "bits=3 (--bit)"]),
        ("--noresume", ["exists", "--noresume"]),
        ("--accumulate=3", ["--accumulate=3"]),
    ],
)
def test_a_training_that_is_refused(ann, flag, words):
    before = content(ann)
    refused(script("ANN_train.py", *train_flags(ann, 8, *SAMPLING), flag), *words)
    assert content(ann) == before


@pytest.mark.parametrize(
    ("flag", "word"),
    [
        ("--threshold=0.5", "threshold=0.5"),
        ("--timestep=4", "spike_steps=4 (--timestep)"),
        ("--noresume", "--noresume"),
        ("--accumulate=3", "--accumulate=3"),
    ],
)
def test_a_direct_training_that_is_refused(sddpm, flag, word):
    before = content(sddpm)
    refused(script("SNN_train.py", *training("sddpm", sddpm, 8), flag), word)
    assert content(sddpm) == before


def test_a_training_beside_a_running_one(ann, sddpm):
    for folder, command in (
        (ann, ["ANN_train.py", *train_flags(ann, 8, *SAMPLING)]),
        (sddpm, ["SNN_train.py", *training("sddpm", sddpm, 8)]),
    ):
        before = content(folder)
        with child_inside(lambda folder=folder: run_lock(folder, "train")):
            refused(script(*command, before=impatient), "in use by another run")
        assert content(folder) == before


def test_a_fine_tuning_with_tsm_that_is_refused_when_it_is_resumed(sddpm):
    flags = tuning(sddpm, 1, "--gap_images=0", "--gen_images=0")
    check(script("SNN_ft.py", *flags))
    accepted = (sddpm / "flagfile.finetune.txt").read_text()
    assert accepted != FLAGS and "--ft_steps=1" in accepted
    before = content(sddpm)
    refused(script("SNN_ft.py", *flags, "--lr=0.5"), "cannot resume", "lr=0.5")
    refused(script("SNN_ft.py", *flags, "--noresume"), "SDM_2T/ckpt.pt exists")
    with child_inside(lambda: run_lock(sddpm / "SDM_2T", "train")):
        refused(script("SNN_ft.py", *flags, before=impatient), "in use by another run")
    assert content(sddpm) == before


def test_a_network_without_a_spiking_counterpart(tmp_path):
    flags = [flag for flag in train_flags(tmp_path, 1) if not flag.startswith("--bit")]
    check(script("ANN_train.py", *flags, "--bit=32"))
    before = content(tmp_path)
    for name, action in (("SNN_conversion.py", "--eval"), ("SNN_ft.py", "--fine_tune")):
        refused(script(name, action, f"--logdir={tmp_path}", *SAMPLING), "full-precision")
    assert content(tmp_path) == before


def test_a_conversion_or_fine_tuning_that_is_refused(ann):
    run = ["--ft_steps=1", "--ft_batch_size=4", f"--logdir={ann}", "--gap_images=0", "--sample_step=0", *SAMPLING]
    check(script("SNN_ft.py", "--fine_tune", *run))
    (ann / "flagfile.convert.txt").write_text(FLAGS)
    before = content(ann)
    conversion, tuning = (["SNN_conversion.py", "--eval", *run], ["SNN_ft.py", "--fine_tune", *run])
    for flag, word in (("--schedule=layer_sync", "fine-tune"), ("--lr=0.5", "lr=0.5"), ("--noresume", "exists")):
        refused(script(*tuning, flag), word)
    for folder, lock, command in ((ann, "convert", conversion), (ann / "SNN_2bit_ft", "finetune", tuning)):
        with child_inside(lambda folder=folder, lock=lock: run_lock(folder, lock)):
            refused(script(*command, before=impatient), "in use by another run")
    assert content(ann) == before


def test_an_evaluation_into_a_folder_of_other_images(ann, sddpm, tmp_path):
    images = f"--images_dir={tmp_path}/images"
    flags = ["--num_images=2", "--sample_only", *SAMPLING, images]
    path = f"--eval_model_path={ann}/ckpt.pt"
    check(script("evaluate.py", f"--logdir={tmp_path}/other", path, *flags))
    assert "--seed=0" in (tmp_path / "other" / "flagfile.evaluate.txt").read_text()
    before = content(ann), content(sddpm), content(tmp_path / "images")
    refused(script("evaluate.py", f"--logdir={ann}", *flags, "--seed=1"), "seed=0, now seed=1")
    refused(script("ANN_train.py", "--eval", f"--logdir={ann}/none", *flags), "no checkpoint at")
    refused(script("SNN_train.py", "--eval", f"--logdir={sddpm}", *flags), "holds images made with")
    assert (content(ann), content(sddpm), content(tmp_path / "images")) == before
    assert not (ann / "none").exists()
