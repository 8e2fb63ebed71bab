"""Device, seeds and run folder: what every stage needs before it starts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from ..errors import UserError, one_line

Net = TypeVar("Net", bound=nn.Module)


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` → device. CUDA_VISIBLE_DEVICES is honoured by torch. Raises UserError without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device=cuda: torch sees no GPU; use --device=auto, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def place(net: Net, device: torch.device) -> Net:
    """Move a network to its device, its images and 2-D kernels in the layout that convolutions want there."""
    net.to(device)
    layout = layout_for(device)
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.dim() == 4:  # no layout of images fits weights over time, which have five
            tensor.data = tensor.data.to(memory_format=layout)
    return net


def layout_for(device: torch.device) -> torch.memory_format:
    """Memory format of weights and images: channels-last on a GPU (not tested on one yet), else as they are.

    On the CPU the layout makes no difference to speed (measured: 0.83 s against 0.84 s a training step).
    """
    return torch.channels_last if device.type == "cuda" else torch.preserve_format


def sent(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """values on `device`; a GPU gets them from pinned memory, so that the host goes on at once (not run on one yet)."""
    if torch.device(device).type == "cuda" and not values.is_cuda:
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether autocast to bfloat16 saves time on this device: AVX-512 BF16 or AMX on a CPU, compute capability 8.0.

    Elsewhere bfloat16 is emulated, several times slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Private names, which a version of torch may lack: then the answer is no.
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def computes_tf32(device: torch.device) -> bool:
    """Whether this device has TF32: GPUs from compute capability 8.0 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def check_device_name(device: object) -> None:
    """Raise UserError for what cannot be the name of a device."""
    if not isinstance(device, str | torch.device):
        raise UserError(f"device={device}: give a device's name, such as cpu or cuda")


@contextlib.contextmanager
def naming_device(device: object) -> Iterator[None]:
    """Raise UserError, which names the device, for what torch raises where there is no such device."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device}: {one_line(str(error).splitlines()[0])}") from None


@contextlib.contextmanager
def evaluating(*nets: nn.Module) -> Iterator[None]:
    """Eval mode for the networks in here; each of their modules then returns to the mode it was in."""
    training = [module for net in nets for module in net.modules() if module.training]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def steady_convolutions(net: nn.Module) -> Iterator[None]:
    """1x1 convolutions in here run by the same routine for every batch and number of threads.

    torch gives those of fewer than 16 rows on one thread to another library, which rounds differently, unless they are
    dilated; and dilation does nothing to a kernel of one pixel.
    """
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    single = [conv for conv in convolutions if {*conv.kernel_size, *conv.dilation} == {1}]
    for module in single:
        module.dilation = (2, 2)
    try:
        yield
    finally:
        for module in single:
            module.dilation = (1, 1)


def keep_freed_memory() -> bool:
    """Let this process keep the memory that tensors free, for the next ones, instead of handing it back to the system.

    glibc maps every large block anew and unmaps it when freed, so that each tensor begins with page faults: a sixth of
    the time of a CPU's training step (docs/performance.md). Returns whether it is done: not without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # malloc.h: M_MMAP_MAX = -4, M_TRIM_THRESHOLD = -1, M_TOP_PAD = -2. A threshold of -1 stands for no limit: with one
    # of 2 GiB, larger blocks would still be handed back.
    return all(mallopt(option, value) == 1 for option, value in ((-4, 0), (-1, -1), (-2, 2**26)))


def seed_from(*parts: int) -> int:
    """One 32-bit seed from several non-negative integers; nearby inputs give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def seed_step(seed: int, step: int, stream: int = 0) -> None:
    """Seed torch's global generators for one step: its random numbers depend on nothing that came before.

    This is why a resumed run needs no saved random state to continue exactly.
    """
    torch.manual_seed(seed_from(seed, step, stream))


def prepare_folder(path: str | os.PathLike, flag: str = "--logdir") -> Path:
    """Create a folder and check that it can be written. Raises UserError, which names the flag."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another {flag}") from None
    return folder
