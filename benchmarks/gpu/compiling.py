"""Step 7: --compile, of a training step and of calls."""

from __future__ import annotations

import time

import torch

from ann2snn.config import UNetConfig
from ann2snn.generate import compiled
from benchmarks.gpu.setting import Setting, relative
from benchmarks.gpu.timings import training


def first_and_later(setting: Setting, config: UNetConfig, batch: int) -> dict[str, object]:
    begun = time.monotonic()
    figures = training(setting, config, batch, amp=True, tf32=False)
    return figures | {"with_compilation": time.monotonic() - begun}


@torch.no_grad()
def calls(setting: Setting, config: UNetConfig, batch: int) -> dict[str, object]:
    net = setting.network(config)
    x, t = setting.inputs(net, batch)
    quick = compiled.compiled(net)
    seconds = setting.seconds(lambda: quick(x, t))
    return {"seconds": seconds, "relative_difference": relative(quick(x, t), net(x, t))}


def main() -> None:
    setting = Setting.of_arguments(__doc__)
    compiled.enable(True)
    config, batch = UNetConfig(in_channels=3, bits=2, **setting.unet), 4 if setting.tiny else 128
    setting.attempt("compiled training step, bfloat16", lambda: first_and_later(setting, config, batch))
    setting.attempt("compiled call, float32", lambda: calls(setting, config, batch))


if __name__ == "__main__":
    main()
