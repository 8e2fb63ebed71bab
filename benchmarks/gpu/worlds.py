"""Step 5: a process group of one, and gradients that are averaged over it."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from benchmarks.gpu.setting import Setting


def world_of_one(setting: Setting) -> dict[str, object]:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("MASTER_PORT", "29511")
    backend = "nccl" if setting.device.type == "cuda" else "gloo"
    dist.init_process_group(backend)
    try:
        value = torch.ones(4, device=setting.device)
        dist.all_reduce(value)
        net = torch.nn.Linear(4, 4).to(setting.device)
        wrapped = torch.nn.parallel.DistributedDataParallel(net)
        wrapped(value[None]).sum().backward()
        return {"backend": backend, "sum": float(value.sum()), "gradient": bool(net.weight.grad.isfinite().all())}
    finally:
        dist.destroy_process_group()


def main() -> None:
    setting = Setting.of_arguments(__doc__)
    setting.attempt("process group", lambda: world_of_one(setting))


if __name__ == "__main__":
    main()
