"""Memory that tensors free stays with the process."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from ann2snn.cli import build
from tests.scripts import check, script

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator"
)
STARTS = {
    "ANN_train.py": "--train",
    "SNN_train.py": "--train",
    "SNN_conversion.py": "--eval",
    "SNN_ft.py": "--fine_tune",
    "evaluate.py": "--sample_only",
}
LARGE = 2**31  # bytes: larger than any hole that earlier tests left in the memory of the process that is forked


def is_mapped(address: int) -> bool:
    """Whether this process has memory there, of whatever kind and page size."""
    ranges = (line.split(maxsplit=1)[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(first, 16) <= address < int(end, 16) for first, end in ranges)


def keeps_what_tensors_free() -> bool:
    tensor = torch.empty(LARGE, dtype=torch.uint8)  # never written, so no memory is used
    middle = tensor.data_ptr() + LARGE // 2
    assert is_mapped(middle)
    del tensor
    return is_mapped(middle)


def hand_freed_memory_back() -> bool:
    """glibc's own settings: a process that is forked from one of tests may have others already."""
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) == 1 for option, value in ((-4, 65536), (-1, 2**17), (-2, 2**17), (-3, 2**17)))


def after_start_up(name: str, keep) -> str:
    """What becomes of freed memory once a script has joined its processes. keep: see `build.world`."""

    def before() -> None:
        hand_freed_memory_back()
        build.keep_freed_memory = keep
        original = build.world

        def world():
            original()
            print("kept" if keeps_what_tensors_free() else "handed back")
            sys.exit(0)

        build.world = world

    return check(script(name, STARTS[name], "--num_threads=1", "--device=cpu", before=before)).strip()


@pytest.mark.parametrize("name", STARTS)
def test_the_scripts_keep_it(name):
    """Whatever `import` a tidy mind removes."""
    assert after_start_up(name, build.keep_freed_memory) == "kept"


def test_left_alone_the_allocator_does_not():
    assert after_start_up("ANN_train.py", hand_freed_memory_back) == "handed back"
