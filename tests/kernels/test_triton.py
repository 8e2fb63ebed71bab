"""The Triton kernels under Triton's interpreter, on a GPU, and as machine code for one that is not here."""

import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[2]
CHECKS = ["tests/kernels/triton_checks.py"]


def triton_version() -> tuple[int, ...]:
    return tuple(int(part) for part in triton.__version__.split(".")[:2])


def run_checks(*options: str, **environment: str) -> None:
    """The `CHECKS` in a fresh process: Triton decides to interpret when it is first imported."""
    checks = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "--import-mode=importlib"]
    wanted = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [*checks, *CHECKS, *options], cwd=ROOT, env=wanted, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


slow = pytest.mark.slow
#: Interpreters before this one take arrays of one element for integers, which NumPy has refused since 2.4.
OLD_INTERPRETER = (3, 7)


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=slow)])
def test_kernels_under_the_interpreter(which):
    if triton_version() < OLD_INTERPRETER and tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
        pytest.skip("the interpreter of this Triton does not know this NumPy: install numpy<2.4")
    run_checks("-m", which, TRITON_INTERPRET="1", KERNEL_DEVICE="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_kernels_on_a_gpu():
    run_checks(TRITON_INTERPRET="0", KERNEL_DEVICE="cuda")


# ---- compilation -----------------------------------------------------------------------------------------------------

FLOATS = ("decay", "threshold", "eps", "low", "high", "first")
LIF = {"STRICT": True, "SOFT": False, "BLOCK": 512}
#: All parameters per channel, levels kept: what takes most registers.
FOLLOW = {"SCALE": 1, "CHARGE": 1, "WORTH": 1, "TAKES_BACK": True, "BYTES": False}
FOLLOW |= {"CHANNELS_INNER": True, "BLOCK": 2048}
PLAIN = {"SCALE": 0, "CHARGE": 0, "WORTH": 0, "charge_ptr": None, "CHANNELS_INNER": False}
#: name → (module, function, constants, types of arguments where they are not float32, or 32-bit integers)
KERNELS = {
    "fake_quant": ("triton_quant", "_forward", {"BLOCK": 1024}, {"x_ptr": "*bf16", "y_ptr": "*bf16"}),
    "fake_quant backward": ("triton_quant", "_backward", {"BLOCK": 1024}, {"x_ptr": "*bf16", "dx_ptr": "*bf16"}),
    "lif_scan": ("triton_lif", "_forward", {**LIF, "KEEP": True}, {"spikes_ptr": "*bf16"}),
    "lif_scan, nothing kept": ("triton_lif", "_forward", {**LIF, "KEEP": False, "u_ptr": None, "steps": 1}, {}),
    "lif_scan backward": ("triton_lif", "_backward", {**LIF, "DETACH": False, "SURROGATE": "atan"}, {}),
    "lif_scan backward, large": (
        "triton_lif",
        "_backward",
        {**LIF, "DETACH": False, "SURROGATE": "triangle"},
        {"last": "i64"},
    ),
    "norm_follow": ("triton_norm", "_in_registers", FOLLOW, {}),
    "norm_follow of bf16": ("triton_norm", "_in_registers", FOLLOW, {"x_ptr": "*bf16", "answers_ptr": "*bf16"}),
    "norm_follow in tiles": ("triton_norm", "_in_tiles", FOLLOW, {}),
    "norm_follow in tiles, bf16": ("triton_norm", "_in_tiles", FOLLOW, {"x_ptr": "*bf16", "stride_l": "i64"}),
    "norm_follow as bytes": (
        "triton_norm",
        "_in_registers",
        FOLLOW | PLAIN | {"BYTES": True, "TAKES_BACK": False},
        {"answers_ptr": "*u8"},
    ),
    "norm_follow at rest": ("triton_norm", "_in_tiles", FOLLOW | PLAIN | {"level_ptr": None, "steps": 1}, {}),
    # Triton makes constants of integers that are 1.
    "norm_follow of ones": (
        "triton_norm",
        "_in_registers",
        FOLLOW | PLAIN | dict.fromkeys(("steps", "groups", "width", "pixels", "stride_p", "BLOCK"), 1),
        {},
    ),
}
cuda = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled")


def compiled(name: str, capability: int):
    """A kernel's machine code for an NVIDIA GPU that need not be here."""
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if "nvidia" not in backends or triton_version() < (3, 3):
        pytest.skip("this Triton has no NVIDIA back end, or is asked to compile in another way")
    file, function, constants, types = KERNELS[name]
    module = importlib.import_module(f"ann2snn.kernels.{file}")
    kernel = getattr(module, function)

    def kind(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        default = "*fp32" if argument.endswith("_ptr") else "fp32" if argument in FLOATS else "i32"
        return types.get(argument, default)

    signature = {argument: kind(argument) for argument in kernel.arg_names}
    values = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    warps = module.warps_of(constants["BLOCK"]) if hasattr(module, "warps_of") else 4
    options = {"enable_fp_fusion": False, "num_warps": warps}
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(ASTSource(kernel, signature, values), target=target, options=options)


@cuda
@pytest.mark.parametrize("capability", [pytest.param(80, marks=slow), 90])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_for_an_nvidia_gpu_and_fit_into_its_registers(name, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = compiled(name, capability)
    assert "fma" not in code.asm["ptx"]  # rounding is torch's
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this Triton comes without the tool that reads machine code")
    (tmp_path / "code.cubin").write_bytes(code.asm["cubin"])
    usage = [str(tool), "-res-usage", str(tmp_path / "code.cubin")]
    found = subprocess.run(usage, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "STACK:0 " in found and "LOCAL:0 " in found  # nothing spills into memory


@cuda
def test_tiles_are_as_large_as_those_that_are_compiled_above():
    from ann2snn.kernels import triton_norm

    assert triton_norm.TILE == FOLLOW["BLOCK"]


@cuda
def test_offsets_beyond_32_bits_are_computed_by_the_host(monkeypatch):
    """The reverse of a scan of 3 · 2^30 potentials begins at their last step."""
    from ann2snn.kernels import LIFRule, triton_lif

    given: dict[str, object] = {}

    class Launch:
        def __getitem__(self, grid):
            names = [name for name in kernel.arg_names if name.islower()]
            return lambda *values, **_: given.update(zip(names, values, strict=False))

    kernel = triton_lif._backward
    monkeypatch.setattr(triton_lif, "_backward", Launch())
    u = torch.empty(3, 2**30, device="meta")
    triton_lif.LIFScan.backward(types.SimpleNamespace(saved_tensors=(u,), rule=LIFRule()), torch.empty_like(u))
    assert given["size"] == 2**30 and given["last"] == 2**31 and given["steps"] == 3
