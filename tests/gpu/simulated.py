"""A GPU that is not there: tensors "on cuda" are the CPU's, with a mark on their memory, and behave as on a GPU.

Code sees `cuda` as their device and takes its ways for GPUs. An operation on tensors of both devices raises, in forward
and backward passes. What would make the host wait for a GPU is counted by the place in our code that asks: values read
(`item`, `cpu`, a condition on a tensor) and shapes that depend on values (`nonzero`, masks) in `waits`, copies to the
GPU that are not announced as non-blocking in `copies`. Values are computed, so results can be compared with the CPU's.

(torch's own FakeTensorMode has no values, and cannot run a backward pass where torch is built for CUDA and finds none.)
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ann2snn.kernels.choice import kernels_by

ROOT = Path(__file__).parents[2]
OURS = (str(ROOT / "ann2snn"),)
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
BY_VALUE = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.repeat_interleave, aten.equal}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPIES = {aten.copy_, aten._to_copy}
MOVES = {"to", "cuda", "cpu", "type_as"}


class SimulatedGPU:
    """waits, copies: how often each place, "FILE:FUNCTION", asked for it."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self._memory: dict[int, StorageWeakRef] = {}  # a weak reference keeps the address from being used again

    def has(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._memory

    def take(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._memory:
            self._memory[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def check(self, func, args: tuple, kwargs: dict) -> bool:
        """Whether an operation runs on the GPU. Raises RuntimeError where its tensors are not on one device."""
        tensors = list(_tensors((*args, *kwargs.values())))
        here = [tensor for tensor in tensors if self.has(tensor)]
        packet = func.overloadpacket
        if not here:
            return False
        others = [tensor for tensor in tensors if not self.has(tensor) and tensor.dim()]
        if packet in INDEXING and self.has(args[0]):
            if any(isinstance(i, Tensor) and not self.has(i) for i in args[1]):
                self.copies[place()] += 1
            if any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
                self.waits[place()] += 1
            others = [tensor for tensor in others if not any(tensor is i for i in args[1])]
        if packet is aten.copy_:
            self.moved(args[1], self.has(args[0]), kwargs.get("non_blocking") or args[2:3] == (True,))
            return self.has(args[0])
        if others:
            raise RuntimeError(f"{func}: tensors on cuda and on the CPU, in {place()}")
        if packet is aten._local_scalar_dense or packet in BY_VALUE:
            self.waits[place()] += 1
        return True

    def moved(self, source: Tensor, to_gpu: bool, non_blocking: bool = False) -> None:
        """Count a copy between the devices."""
        if self.has(source) != to_gpu and not non_blocking:
            (self.copies if to_gpu else self.waits)[place()] += 1


class _Operations(TorchDispatchMode):
    """What is computed from tensors of the GPU is on the GPU."""

    def __init__(self, gpu: SimulatedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        on_gpu = self.gpu.check(func, args, kwargs or {})
        answer = func(*args, **(kwargs or {}))
        if on_gpu:
            for tensor in _tensors((answer,)):
                self.gpu.take(tensor)
        return answer


class _Calls(TorchFunctionMode):
    """Devices that calls name: the CPU computes what is asked of cuda."""

    def __init__(self, gpu: SimulatedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name, gpu = getattr(func, "__name__", ""), self.gpu
        if name == "numpy" and gpu.has(args[0]) or name == "__array__" and gpu.has(args[0]):
            raise TypeError(f"can't convert a cuda tensor to numpy, in {place()}")
        if name == "tolist" and gpu.has(args[0]):
            gpu.waits[place()] += 1
        if name == "pin_memory":
            return args[0].clone()
        if name == "is_pinned":
            return False
        wanted, args, kwargs = self._wanted(name, args, kwargs)
        answer = func(*args, **kwargs)
        if wanted is None or not isinstance(answer, Tensor):
            return answer
        if gpu.has(answer) == (wanted.type == "cuda"):
            return answer
        if name not in MOVES and name not in ("tensor", "as_tensor", "asarray") and wanted.type == "cuda":
            return gpu.take(answer)  # made by a kernel, where it belongs
        gpu.moved(answer, wanted.type == "cuda", bool(kwargs.get("non_blocking")))
        return self._over(answer, wanted)

    def _wanted(self, name: str, args: tuple, kwargs: dict) -> tuple[torch.device | None, tuple, dict]:
        """The device that a call names, and its arguments with the CPU in that place."""
        wanted = None
        if name in MOVES and len(args) > 1 and isinstance(args[1], Tensor):  # x.to(other)
            return args[1].device, args, kwargs
        if name in ("cuda", "cpu"):
            return (GPU if name == "cuda" else CPU), args, kwargs
        if kwargs.get("device") is not None:
            wanted, kwargs["device"] = torch.device(kwargs["device"]), CPU
        elif name == "to" and len(args) > 1 and isinstance(args[1], (str, torch.device)):
            wanted, args = torch.device(args[1]), (args[0], CPU, *args[2:])
        return wanted, args, kwargs

    def _over(self, tensor: Tensor, wanted: torch.device) -> Tensor:
        if wanted.type == "cuda":
            return self.gpu.take(tensor.clone())
        with _unmarked(self.gpu, tensor):
            return tensor.clone()


@contextlib.contextmanager
def _unmarked(gpu: SimulatedGPU, tensor: Tensor) -> Iterator[None]:
    address = tensor.untyped_storage()._cdata
    mark = gpu._memory.pop(address)
    try:
        yield
    finally:
        gpu._memory[address] = mark


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def place() -> str:
    """The innermost function of ours that is running, "ann2snn/FILE:FUNCTION"."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(OURS):
            return f"{Path(code.co_filename).relative_to(ROOT)}:{code.co_name}"
        frame = frame.f_back
    return "elsewhere"


@contextlib.contextmanager
def simulated_gpu() -> Iterator[SimulatedGPU]:
    """torch finds a GPU of compute capability 9.0 in here. Kernels are torch's: Triton's need a real one."""
    gpu = SimulatedGPU()
    autocast, enabled, device = torch.autocast, torch.is_autocast_enabled, torch.Tensor.device

    class Autocast(autocast):
        def __init__(self, device_type: str, *args: object, **kwargs: object) -> None:
            super().__init__("cpu", *args, **kwargs)

    def shown(tensor: Tensor) -> torch.device:
        return GPU if gpu.has(tensor) else device.__get__(tensor)

    patches = [
        mock.patch.object(torch, "autocast", Autocast),
        mock.patch.object(torch.Tensor, "device", property(shown), create=True),
        mock.patch.object(torch.Tensor, "is_cuda", property(gpu.has), create=True),
        mock.patch.object(torch.Tensor, "is_cpu", property(lambda tensor: not gpu.has(tensor)), create=True),
        mock.patch.object(torch, "is_autocast_enabled", lambda *device: enabled("cpu")),
        mock.patch.object(torch, "get_autocast_dtype", lambda *device: torch.bfloat16),
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(torch.cuda, "device_count", lambda: 1),
        mock.patch.object(torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
        mock.patch.object(torch.cuda, "mem_get_info", lambda device=None: (2**36, 2**37)),
    ]
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        patches.append(mock.patch.object(torch.optim.Optimizer, name, lambda self: None, create=True))
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(kernels_by("torch"))
        stack.enter_context(_Operations(gpu))
        stack.enter_context(_Calls(gpu))
        yield gpu
