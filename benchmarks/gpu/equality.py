"""Step 3: the device against the CPU in float64; spiking against quantized networks; TF32 off and on."""

from __future__ import annotations

import torch

import ann2snn
from ann2snn.distributed.precision import in_tf32
from benchmarks.gpu.setting import Setting, relative


@torch.no_grad()
def against_cpu(setting: Setting, config: object, dtype: torch.dtype) -> dict[str, object]:
    on_device, on_cpu = setting.network(config, dtype), setting.network(config, dtype, "cpu")
    answers = [net(*setting.inputs(net, 4, next(net.parameters()).device)) for net in (on_device, on_cpu)]
    return {"relative_difference": relative(*answers)}


@torch.no_grad()
def conversion(setting: Setting, config: object, dtype: torch.dtype) -> dict[str, object]:
    ann = setting.network(config, dtype)
    x, t = setting.inputs(ann, 4)
    errors = {"layer_sync": relative(ann2snn.convert(ann)(x, t), ann(x, t))}
    stream = ann2snn.convert(ann, schedule="stream", settle_steps="auto")
    errors["stream, settled"] = relative(stream(x, t), ann(x, t))
    errors["settling_steps"] = stream.last_settle_steps
    snn = ann2snn.convert(ann)
    with snn.carrying():
        errors["carried"] = max(relative(snn(x + step / 100, t), ann(x + step / 100, t)) for step in range(5))
    return errors


@torch.no_grad()
def tf32(setting: Setting, config: object) -> dict[str, object]:
    ann, exact = setting.network(config), setting.network(config, torch.float64)
    reference, errors = exact(*setting.inputs(exact, 4)), {}
    for on in (False, True):
        with in_tf32(on):
            errors["on" if on else "off"] = relative(ann(*setting.inputs(ann, 4)), reference)
    return errors


def main() -> None:
    setting = Setting.of_arguments(__doc__)
    for name, config in setting.configs().items():
        for dtype in (torch.float64, torch.float32):
            label = f"{str(dtype).removeprefix('torch.')}: {name}"
            setting.attempt(label, lambda c=config, d=dtype: against_cpu(setting, c, d))
    for name in ("unet, 2 bits", "unet, 4 bits, spike-driven, 4-bit weights", "attention, 3 bits"):
        for dtype in (torch.float64, torch.float32):
            label = f"conversion, {str(dtype).removeprefix('torch.')}: {name}"
            setting.attempt(label, lambda n=name, d=dtype: conversion(setting, setting.configs()[n], d))
    setting.attempt("TF32: unet", lambda: tf32(setting, setting.configs()["unet"]))


if __name__ == "__main__":
    main()
