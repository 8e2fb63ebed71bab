"""Half-written files that killed stages leave behind are gone after the next start of any stage."""

import os

import pytest

from ann2snn.files.atomic import HOST
from tests.processes import ended, fork
from tests.scripts import SAMPLING, check, four_blocks, script, train_flags


def half_written(path):
    """A temporary file for `path` of a process that has ended."""
    dead = fork(lambda: None)
    ended(dead)
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(f".{path.name}.{HOST}.{dead}.0123abcd.tmp")
    path.write_bytes(b"half")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("trained")
    check(script("ANN_train.py", *train_flags(logdir, 2)))
    return logdir


PLACES = ["flagfile.txt", "ckpt.pt", "sample/4.png", "generated/ann_4.npz", "SNN_2bit_ft/model_backpacks/tail_1.pt"]


@pytest.mark.parametrize("stage", ["ANN_train.py", "SNN_conversion.py", "SNN_ft.py", "evaluate.py"])
def test_every_stage_clears_the_run_folder(trained, stage):
    litter = [half_written(trained / place) for place in PLACES]
    common = [f"--logdir={trained}", *SAMPLING]
    flags = {
        "ANN_train.py": train_flags(trained, 2),
        "SNN_conversion.py": ["--eval", *common, "--gen_images=0", "--gap_images=0"],
        "SNN_ft.py": ["--fine_tune", *common, "--ft_steps=1", "--ft_batch_size=2", "--sample_step=0", "--gap_images=0"],
        "evaluate.py": ["--sample_only", *common, "--num_images=2"],
    }
    check(script(stage, *flags[stage], before=four_blocks))
    assert not any(path.exists() for path in litter)


def test_files_beside_a_folder_of_images_elsewhere_are_cleared(trained, tmp_path):
    litter, other = half_written(tmp_path / "images_2.npz"), half_written(tmp_path / "other" / "x.png")
    flags = ["--sample_only", f"--logdir={trained}", f"--images_dir={tmp_path}/images", "--num_images=2", *SAMPLING]
    check(script("evaluate.py", *flags))
    assert not litter.exists() and other.exists(), "no folder that is not the run's is searched"


def test_statistics_clear_their_own_folder_alone(tmp_path):
    litter, other = half_written(tmp_path / "stats.npz"), half_written(tmp_path / "other" / "x.png")
    flags = ["--make_stats", "--dataset_type=fashion_mnist_10k", "--img_size=8", "--num_images=10"]
    flags += ["--extractor=lite0", "--lite0_size=32", f"--fid_cache={tmp_path}/stats.npz"]
    check(script("evaluate.py", *flags))
    assert not litter.exists() and other.exists()
    assert os.listdir(tmp_path / "other") == [other.name]
