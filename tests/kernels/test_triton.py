"""The Triton kernels under Triton's interpreter, on a GPU, and as machine code for one that is not here."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[2]
CHECKS = ["tests/kernels/triton_checks.py", "tests/kernels/triton_if_checks.py"]


def triton_version() -> tuple[int, ...]:
    return tuple(int(part) for part in triton.__version__.split(".")[:2])


def run_checks(**environment: str) -> None:
    """The `CHECKS` in a fresh process: Triton decides to interpret when it is first imported."""
    checks = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "--import-mode=importlib"]
    wanted = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([*checks, *CHECKS], cwd=ROOT, env=wanted, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


#: Interpreters before this one take arrays of one element for integers, which NumPy has refused since 2.4.
OLD_INTERPRETER = (3, 7)


def test_kernels_under_the_interpreter():
    if triton_version() < OLD_INTERPRETER and tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
        pytest.skip("the interpreter of this Triton does not know this NumPy: install numpy<2.4")
    run_checks(TRITON_INTERPRET="1", KERNEL_DEVICE="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_kernels_on_a_gpu():
    run_checks(TRITON_INTERPRET="0", KERNEL_DEVICE="cuda")


# ---- compilation -----------------------------------------------------------------------------------------------------

FLOATS = ("decay", "threshold", "eps")
SCAN = {"THETA": 0, "CHARGE": 0, "SIZE": 1, "SIGNED": True, "BURST": 1, "CHANNELS_INNER": True, "BLOCK": 256}
COUNT = {"SCALE": 1, "CHARGE": 0, "SIZE": 0, "CHANNELS_INNER": False, "BLOCK": 256, "stride_p": 1}
LIF = {"STRICT": True, "SOFT": False, "BLOCK": 512}
IF_GIVEN = dict.fromkeys(("EVENTS", "AFTER", "COUNTED", "MEMBRANE", "COUNT", "THETA"), True)
IF_ABSENT = {"current_ptr": None, "membrane_ptr": None, "after_ptr": None, "by_after_ptr": None, "by_counted_ptr": None}
#: name → (module, function, constants, element types of pointers that are not float32)
KERNELS = {
    "fake_quant": ("triton_quant", "_forward", {"BLOCK": 1024}, {"x_ptr": "bf16", "y_ptr": "bf16"}),
    "fake_quant backward": ("triton_quant", "_backward", {"BLOCK": 1024}, {"x_ptr": "bf16", "dx_ptr": "bf16"}),
    "lif_scan": ("triton_lif", "_forward", {**LIF, "KEEP": True}, {"spikes_ptr": "bf16"}),
    "lif_scan, nothing kept": ("triton_lif", "_forward", {**LIF, "KEEP": False, "u_ptr": None, "steps": 1}, {}),
    "lif_scan backward": ("triton_lif", "_backward", {**LIF, "DETACH": False, "SURROGATE": "atan"}, {}),
    "if_scan": (
        "triton_if",
        "_forward",
        {"SIGNED": True, "BLOCK": 512},
        {"current_ptr": "bf16", "count_ptr": "bf16", "slopes_ptr": "i8"},
    ),
    "if_scan of ones": (
        "triton_if",
        "_forward",
        {"SIGNED": False, "BLOCK": 512, **dict.fromkeys(("size", "steps", "single", "burst", "inner", "thetas"), 1)},
        {"slopes_ptr": "i8"},
    ),
    "if_scan backward": (
        "triton_if",
        "_backward",
        {**IF_GIVEN, "BLOCK": 512},
        {"current_ptr": "bf16", "by_current_ptr": "bf16", "slopes_ptr": "i8"},
    ),
    "if_scan backward, little wanted": (
        "triton_if",
        "_backward",
        {
            **dict.fromkeys(IF_GIVEN, False),
            **IF_ABSENT,
            **dict.fromkeys(("by_membrane_ptr", "by_count_ptr", "by_theta_ptr")),
            **{"EVENTS": True, "BLOCK": 512, "steps": 1, "inner": 1, "thetas": 1},
        },
        {"slopes_ptr": "i8"},
    ),
    "norm_count": ("triton_norm", "_count", COUNT, {}),
    "norm_scan": ("triton_norm", "_scan", SCAN, {"x_ptr": "bf16"}),
    "norm_scan, unsigned": ("triton_norm", "_scan", {**SCAN, "SIGNED": False, "BURST": 3}, {}),
    # Triton makes constants of integers that are 1.
    "norm_scan of ones": (
        "triton_norm",
        "_scan",
        {**SCAN, **dict.fromkeys(("steps", "window", "width", "pixels", "BLOCK"), 1)},
        {},
    ),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled")
def test_kernels_compile_for_an_nvidia_gpu(name, tmp_path, monkeypatch):
    import importlib

    from triton.backends import backends
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if "nvidia" not in backends or triton_version() < (3, 3):
        pytest.skip("this Triton has no NVIDIA back end, or is asked to compile in another way")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    file, function, constants, types = KERNELS[name]
    kernel = getattr(importlib.import_module(f"ann2snn.kernels.{file}"), function)

    def kind(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        if argument.endswith("_ptr"):
            return "*" + types.get(argument, "fp32")
        return "fp32" if argument in FLOATS else "i32"

    signature = {argument: kind(argument) for argument in kernel.arg_names}
    values = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    options = {"enable_fp_fusion": False, "num_warps": 4}
    target = GPUTarget("cuda", 80, 32)
    compiled = triton.compile(ASTSource(kernel, signature, values), target=target, options=options)
    assert compiled.asm["cubin"]
    assert "fma" not in compiled.asm["ptx"]  # rounding is torch's
