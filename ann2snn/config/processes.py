"""The registry of processes: one line each says where its class is and which settings it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .code import Code
from .samplers import listed


@dataclass(frozen=True)
class Kind:
    """code: a class as `ann2snn.diffusion.process.Process` describes it, or its place.

    takes: the settings of training and of `DiffusionConfig` that not every process has. whole_steps: its times are
    DDPM's diffusion steps, it is a `VP`, and all samplers run on it; else the linear ones do.
    """

    code: Any
    takes: tuple[str, ...] = ()
    whole_steps: bool = False

    @property
    def cls(self) -> Any:
        return self.code.loaded() if isinstance(self.code, Code) else self.code


_VP = ("schedule", "mean_type", "zero_terminal_snr", "loss_type", "loss_weight", "learned_range")
PROCESSES: dict[str, Kind] = {
    "vp": Kind(Code("diffusion.ddpm.DDPM"), _VP, whole_steps=True),
    "cld": Kind(Code("diffusion.cld.CLD"), ("factor", "linear_first")),
    "blur": Kind(Code("diffusion.blur.BDM"), ("linear_first",)),
}


def processes_with(setting: str) -> str:
    """The names of the processes that take this setting, as a sentence lists them."""
    return listed([name for name, kind in PROCESSES.items() if setting in kind.takes])
