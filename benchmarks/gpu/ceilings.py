"""Step 0: versions, and what the device can do at most."""

from __future__ import annotations

import platform

import numpy
import torch

from benchmarks.gpu.setting import Setting


def versions(setting: Setting) -> dict[str, object]:
    entries = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    try:
        import triton

        entries["triton"] = triton.__version__
    except ImportError:
        entries["triton"] = None
    if setting.device.type == "cuda":
        about = torch.cuda.get_device_properties(setting.device)
        entries |= {"gpu": about.name, "memory_gib": about.total_memory / 2**30, "cuda": torch.version.cuda}
        entries |= {"cudnn": torch.backends.cudnn.version(), "capability": f"{about.major}.{about.minor}"}
    return entries


def bandwidth(setting: Setting) -> dict[str, object]:
    size = 2**20 if setting.tiny else 2**30
    source = torch.ones(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    return {"bytes_per_second": 2 * size / setting.seconds(lambda: target.copy_(source))}


def matrices(setting: Setting, dtype: torch.dtype, tf32: bool) -> dict[str, object]:
    torch.backends.cuda.matmul.allow_tf32 = tf32
    n = 256 if setting.tiny else 8192
    a = torch.ones(n, n, dtype=dtype, device=setting.device)
    try:
        return {"operations_per_second": 2 * n**3 / setting.seconds(lambda: a @ a)}
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def main() -> None:
    setting = Setting.of_arguments(__doc__)
    setting.attempt("versions", lambda: versions(setting))
    setting.attempt("copy", lambda: bandwidth(setting))
    for name, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, False),
        ("TF32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        setting.attempt(f"matrices, {name}", lambda d=dtype, t=tf32: matrices(setting, d, t))


if __name__ == "__main__":
    main()
