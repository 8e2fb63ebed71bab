"""Which GPU a process of many computes on, and how long it waits for the GPUs of the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

import torch

from ..errors import UserError

#: Environment variable: minutes that a transfer between GPUs may take, and its default. Processes come to it together,
#: as they have met on the CPU in every step, however long one of them scored or wrote. Whoever is late has hung.
TIMEOUT, MINUTES = "ANN2SNN_NCCL_TIMEOUT", 30


def own_gpu() -> torch.device:
    """The GPU of this process: the only one that it sees, or the one of its number on this machine.

    A single one is what Slurm's --gpus-per-task=1 shows to every process, another one to each. Raises UserError where
    there are fewer GPUs than processes.
    """
    local, visible = int(os.environ.get("LOCAL_RANK", os.environ["RANK"])), torch.cuda.device_count()
    if local >= visible > 1:
        raise UserError(
            f"process {local} of this machine finds {visible} visible GPUs: "
            "start at most one process a GPU, or add --device=cpu"
        )
    return torch.device("cuda", 0 if visible == 1 else local)


def check_alone_on(device: torch.device, claim: Callable[[str], bool], rank: int) -> None:
    """Raise UserError where another process has the same GPU, for which NCCL has no words.

    claim: whether this process is the first of all to ask for what it names, see `World.claim`.
    """
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)  # older versions of torch do not tell
    if uuid is not None and not claim(f"gpu/{uuid}"):
        raise UserError(
            f"process {rank} has the GPU of another one ({uuid}): start at most one process a GPU, or add --device=cpu"
        )


def patience() -> timedelta:
    """How long a transfer between GPUs may take."""
    return timedelta(minutes=int(os.environ.get(TIMEOUT, MINUTES)))
