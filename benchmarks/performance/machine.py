"""What the numbers were measured on."""

from __future__ import annotations

import os

import torch

from benchmarks.settling import environment

from .plan import Plan


def machine(device: torch.device, plan: Plan) -> dict[str, str]:
    """Processor, threads, torch, GPU, date, and the plan."""
    about = environment() | {"cores": str(os.cpu_count()), "device": device.type, "sizes": plan.name}
    if device.type == "cuda":
        about |= {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
        about |= {"cudnn": str(torch.backends.cudnn.version())}
    about["load"] = f"{os.getloadavg()[0]:.1f} when the run began"
    return about | {"rounds": f"{plan.repetitions} after {plan.warmup} of warm-up"}
