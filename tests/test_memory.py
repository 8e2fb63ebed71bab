"""Memory that tensors free stays with the process."""

import ctypes
import resource
import subprocess
import sys

import pytest

from ann2snn.cli import build
from ann2snn.stages import train
from tests.scripts import ROOT, check, script, train_flags

COUNT_FAULTS = """
import resource
import torch
from ann2snn.distributed.runtime import keep_freed_memory

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**20)  # 4 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
without = faults()
done = keep_freed_memory()
torch.ones(2**20)
print(int(done), without, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_tensors_take_their_memory_from_those_before_them():
    ran = subprocess.run([sys.executable, "-c", COUNT_FAULTS], cwd=ROOT, capture_output=True, text=True, check=True)
    done, without, kept = map(int, ran.stdout.split())
    if not done:
        pytest.skip("no glibc")
    assert kept * 10 < without


def faults_of_training(logdir, keep) -> int:
    """Page faults of six steps of ANN_train.py, after those in which it takes its memory. keep: see `build.world`."""

    def before():
        build.keep_freed_memory = keep
        original, seen = train.Trainer.train_step, []

        def train_step(self, images):
            seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
            if self.step == 9:
                print(f"faults {seen[9] - seen[3]}")
            return original(self, images)

        train.Trainer.train_step = train_step

    out = check(script("ANN_train.py", *train_flags(logdir, 10), "--batch_size=512", "--save_step=0", before=before))
    return int(out.split("faults ")[1].split()[0])


def hand_freed_memory_back() -> bool:
    """glibc's own settings: a process that is forked from one of tests may have others already."""
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) == 1 for option, value in ((-4, 65536), (-1, 2**17), (-2, 2**17), (-3, 2**17)))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_the_scripts_do_so(tmp_path):
    """Whatever `import` a tidy mind removes."""
    shipped = faults_of_training(tmp_path / "shipped", build.keep_freed_memory)
    without = faults_of_training(tmp_path / "without", hand_freed_memory_back)
    assert shipped * 2 < without  # both count what else a loaded machine does
