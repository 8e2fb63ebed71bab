"""Memory that tensors free stays with the process."""

import subprocess
import sys

import pytest

from tests.scripts import ROOT

COUNT_FAULTS = """
import resource
import torch
from ann2snn.runtime import keep_freed_memory

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
