"""torch.compile for the two calls a run spends its time in: a network while it samples, and while it trains.

A choice of the whole process, as the number of threads is. Everything else (gaps, costs, rasters, fine-tuning, state
dicts) goes to the network itself, which is never changed: hooks put on it after compilation would go unseen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config
from tqdm import tqdm

from ..convert import SpikingNetwork
from ..errors import one_line

#: Under `stream` the compiler unrolls the time steps, and takes minutes for more of them.
MOST_STEPS = 7
_enabled = False


def enable(on: bool) -> None:
    """Whether `compiled` compiles, in this process, from now on."""
    global _enabled
    _enabled = on
    if on and hasattr(config, "force_non_lazy_backward_lowering"):  # newer versions of torch
        config.force_non_lazy_backward_lowering = True  # a backward that cannot be compiled then shows in forward


def compiled(net: nn.Module) -> nn.Module:
    """What to call in place of the denoiser `net`: itself, or its compiled form where that is enabled.

    The result is the network's but for rounding; it has the same parameters, and draws the same random numbers.
    """
    return _compiled(net) if _enabled else net


class Compiled(nn.Module):
    """Calls `net` through its compiled form or, from the first failure of the compiler on, as it is, with a note.

    backend: of torch.compile.
    """

    def __init__(self, net: nn.Module, backend: str = "inductor") -> None:
        super().__init__()
        self.net = net
        # inductor's own random numbers would give other dropout masks.
        options: dict[str, Any] | None = {"fallback_random": True} if backend == "inductor" else None
        # In one piece or not at all: a failure then comes before anything has been computed.
        self._call: Callable | None = torch.compile(net.forward, fullgraph=True, backend=backend, options=options)

    def forward(self, x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        """x [N, C, H, W], t [N], and y [N] of a network that is told classes → what `net` gives."""
        if self._call is not None and (reason := unsuitable(self.net)):
            self._give_up(reason)
        if self._call is not None:
            try:
                return self._call(x, t, *labels)
            except Exception as error:  # the compiler's are of all kinds; the network's own come again below
                result = self.net(x, t, *labels)
                self._give_up(str(error))
                return result
        return self.net(x, t, *labels)

    def _give_up(self, reason: str) -> None:
        self._call = None
        _note(f"note: --compile: {type(self.net).__name__} runs uncompiled: {one_line(reason)[:200]}")


def unsuitable(net: nn.Module) -> str:
    """Why a network is not worth compiling; empty if it is."""
    if isinstance(net, SpikingNetwork) and net.clock.keeps:
        return "levels are carried from call to call"
    if not isinstance(net, SpikingNetwork) or not net.clock.is_stream:
        return ""
    settle = net.spiking.settle_steps
    if isinstance(settle, str):  # auto
        return "how long it settles depends on what it computes"
    steps = net.clock.spike_steps + settle
    return f"{steps} time steps under stream, {MOST_STEPS} at most are compiled" if steps > MOST_STEPS else ""


@functools.cache  # of raw and averaged weights, one speaks for both
def _note(text: str) -> None:
    tqdm.write(text)


@functools.lru_cache(maxsize=4)  # raw and averaged weights of a training
def _compiled(net: nn.Module) -> Compiled:
    return Compiled(net)
