"""Which implementation of a kernel runs: the torch reference, or its Triton version.

Triton serves half- and single-precision tensors on CUDA devices; everything else is torch's. The environment variable
ANN2SNN_KERNELS=torch|triton or the context manager `kernels_by` name one instead. "triton" can only ask: what Triton
cannot run is torch's nevertheless. On a CPU it can run under its interpreter alone, that is with TRITON_INTERPRET=1 set
before the first import of torch or triton; this is how the kernels are tested. They have not been run on a GPU yet.
On a CPU, "torch" switches the convolution of bytes (`spike_conv`) off.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

ENVIRONMENT = "ANN2SNN_KERNELS"
BACKENDS = ("torch", "triton")
TRITON_TYPES = (torch.float32, torch.bfloat16, torch.float16)
#: CUDA compute capability from which on Triton knows all of these types.
LEAST_CAPABILITY = (8, 0)

_forced: str | None = None


@contextlib.contextmanager
def kernels_by(backend: str | None) -> Iterator[None]:
    """Prefer "torch" or "triton" inside the context, None: by device. Raises ValueError for another name."""
    global _forced
    previous, _forced = _forced, _checked(backend, "kernels_by")
    try:
        yield
    finally:
        _forced = previous


def preferred() -> str | None:
    """The implementation asked for, None: by device. Raises ValueError for a bad ANN2SNN_KERNELS."""
    return _forced or _checked(os.environ.get(ENVIRONMENT) or None, ENVIRONMENT)


def runs_triton(kernel: str, *tensors: Tensor) -> bool:
    """Whether a kernel on these tensors is to be Triton's; `kernel` is the module that has it, such as "triton_lif".

    Raises ValueError for a bad ANN2SNN_KERNELS.
    """
    if torch.compiler.is_compiling():
        return False  # the compiler traces the torch reference and fuses it itself
    backend = preferred()
    if backend == "torch" or not has_triton():
        return False
    device = tensors[0].device
    if any(v.device != device or v.dtype not in TRITON_TYPES or not v.numel() for v in tensors):
        return False
    if device.type == "cuda":
        return _works(kernel, device.index)
    return backend == "triton" and device.type == "cpu" and interprets()


def has_triton() -> bool:
    return is_installed("triton")


def interprets() -> bool:
    """Whether Triton simulates its kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Makes x's device the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def _checked(backend: str | None, source: str) -> str | None:
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"{source}: {backend!r} is no kernel backend, use {' or '.join(BACKENDS)}")
    return backend


@functools.cache
def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@functools.cache
def _works(kernel: str, index: int) -> bool:
    """Whether a GPU is new enough, and a kernel compiles and answers rightly on it. Warns if it does not."""
    if torch.cuda.get_device_capability(index) < LEAST_CAPABILITY:
        return False
    try:
        # Whatever the caller is in the middle of: small tensors of its own, with gradients.
        with torch.inference_mode(False), torch.enable_grad():
            probe = importlib.import_module(f".{kernel}", __package__).probe
            problem = "" if probe(torch.device("cuda", index)) else "it answers wrongly"
    except Exception as error:  # a missing compiler, driver or library: each raises something else
        problem = (str(error).splitlines() or [type(error).__name__])[0]
    if problem:
        text = f"{kernel} does not work on GPU {index}, torch runs instead: {problem}"
        warnings.warn(text, stacklevel=2)
    return not problem
