"""Directly trained networks in two processes: the network, the SDM and the images of one."""

import os
import shutil
import time

import pytest

from ann2snn.checkpoints import checkpoint
from tests.scripts import SAMPLING, check, processes, script
from tests.stages.direct_runs import pictures, same, training, tuning, weights
from tests.stages.test_parallel import CLOSE, check_all, distance

#: Biases before a batch norm have no gradient but rounding, of which Adam makes steps of full length, either way: two
#: runs part by the learning rate in every step, whatever computes them.
SLOW = "--lr=1e-4"


def part(state: dict, statistics: bool) -> dict:
    """Batch norm's running statistics, or all that is no counter and no statistic."""
    kept = (name for name in state if not name.endswith("num_batches_tracked"))
    return {name: state[name] for name in kept if name.endswith(("running_mean", "running_var")) == statistics}


def distances(one, two) -> list[float]:
    """Relative, of the raw and the averaged weights and running statistics in two run folders."""
    found = []
    for key in ("net_model", "ema_model"):
        a, b = (weights(folder / "ckpt.pt", key) for folder in (one, two))
        counters = [name for name in a if name.endswith("num_batches_tracked")]
        assert len(counters) > 20 and all(a[name] == b[name] for name in counters)
        found += [distance(part(b, statistics), part(a, statistics)) for statistics in (False, True)]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """{arch: logdir} of a training by one process."""
    folder = tmp_path_factory.mktemp("alone")
    for arch in ("sddpm", "fsddim"):
        check(script("SNN_train.py", *training(arch, folder / arch, 4, SLOW, "--gap_images=0", "--gen_images=0")))
    return {arch: folder / arch for arch in ("sddpm", "fsddim")}


@pytest.mark.parametrize("arch", [pytest.param("sddpm", marks=pytest.mark.slow), "fsddim"])
def test_two_processes_train_and_export_what_one_does(alone, tmp_path, arch):
    flags = training(arch, tmp_path, 4, SLOW, "--sample_step=4")
    assert check_all(processes(2, "SNN_train.py", *flags)).count("trained_snn.pt:") == 1
    assert max(distances(alone[arch], tmp_path)) < CLOSE
    assert same(weights(tmp_path / "trained_snn.pt"), weights(tmp_path / "ckpt.pt"))
    for name in ("cost.json", "raster.npz", "sample/4.png", f"images/{arch.upper()}_T2.png"):
        assert (tmp_path / name).exists(), name


def test_half_of_the_batch_would_make_another_network(alone, tmp_path):
    """The tolerance above is not so wide that it would pass whatever is computed."""
    check(script("SNN_train.py", *training("sddpm", tmp_path, 4, SLOW, "--batch_size=2", "--gap_images=0")))
    assert min(distances(alone["sddpm"], tmp_path)) > 5 * CLOSE


@pytest.mark.slow
def test_two_processes_tune_an_sdm_as_one_does(alone, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for count, folder in enumerate(folders, start=1):
        folder.mkdir()
        shutil.copy(alone["sddpm"] / "ckpt.pt", folder)
        check_all(processes(count, "SNN_ft.py", *tuning(folder, 3, SLOW, "--gap_images=0")))
    assert max(distances(*(folder / "SDM_2T" for folder in folders))) < CLOSE
    assert len(weights(folders[1] / "SDM_2T" / "trained_snn.pt")) > len(weights(folders[1] / "ckpt.pt"))


@pytest.mark.parametrize(
    ("arch", "sampler"), [("sddpm", SAMPLING), ("fsddim", ["--sampler=fsddim", "--sampler_steps=3"])]
)
def test_two_processes_share_the_images(direct_runs, tmp_path, arch, sampler):
    found = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        model = f"--eval_model_path={direct_runs[arch][0]}/trained_snn.pt"
        flags = ["--sample_only", f"--logdir={folder}", model, "--num_images=5", "--batch_size=2", *sampler]
        check_all(processes(count, "evaluate.py", *flags))
        found.append(pictures(folder))
    assert found[0] == found[1] and len(found[0]) == 5


def slow_to_write():
    """The main process takes its time over every checkpoint."""
    original = checkpoint.save

    def save(*args, **options):
        if os.environ.get("RANK") == "0":
            time.sleep(0.7)
        return original(*args, **options)

    checkpoint.save = save


def test_no_process_reads_the_last_checkpoint_before_it_is_written(tmp_path):
    """The first and only checkpoint is that of the last step: who reads too early finds none."""
    flags = training("fsddim", tmp_path, 1, "--save_step=0", "--gap_images=0")
    check_all(processes(2, "SNN_train.py", *flags, before=slow_to_write))
    assert (tmp_path / "trained_snn.pt").exists()


def test_one_process_goes_on_with_what_two_began(alone, tmp_path):
    quick = [SLOW, "--gap_images=0", "--gen_images=0"]
    check_all(processes(2, "SNN_train.py", *training("sddpm", tmp_path, 2, *quick)))
    assert "resuming" in check(script("SNN_train.py", *training("sddpm", tmp_path, 4, *quick)))
    assert max(distances(alone["sddpm"], tmp_path)) < CLOSE
