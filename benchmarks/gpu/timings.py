"""Step 6: training steps, network calls and samplers, timed; and the operators that take most of a training step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

import ann2snn
from ann2snn.config import SampleConfig, SpikingConfig, UNetConfig
from ann2snn.distributed.precision import in_tf32
from ann2snn.generate.sampling import generate
from ann2snn.kernels import kernels_by
from benchmarks.gpu.setting import Setting

CALLS = {
    "layer_sync": SpikingConfig(),
    "stream": SpikingConfig("stream"),
    "stream, settled": SpikingConfig("stream", settle_steps="auto"),
}


def streaming(ann: torch.nn.Module) -> torch.nn.Module:
    return ann2snn.convert(ann, CALLS["stream"])


def memory(setting: Setting) -> dict[str, object]:
    if setting.device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(setting.device) / 2**30
    torch.cuda.reset_peak_memory_stats(setting.device)
    return {"peak_gib": peak}


def training(setting: Setting, config: UNetConfig, batch: int, amp: bool, tf32: bool) -> dict[str, object]:
    trainer, images = setting.trainer(config, batch, amp, tf32), setting.images(config, batch)
    seconds = setting.seconds(lambda: trainer.train_step(images))
    return {"seconds": seconds, "images_per_second": batch / seconds} | memory(setting)


def call(setting: Setting, config: UNetConfig, batch: int, action: Callable, amp: bool = False) -> dict[str, object]:
    ann = setting.network(config)
    net = action(ann)
    x, t = setting.inputs(net, batch)
    cast = torch.autocast(setting.device.type, torch.bfloat16, enabled=amp)
    with torch.no_grad(), cast:
        seconds = setting.seconds(lambda: net(x, t))
    return {"seconds": seconds, "images_per_second": batch / seconds} | memory(setting)


def carried(setting: Setting, config: UNetConfig, batch: int) -> dict[str, object]:
    snn = ann2snn.convert(setting.network(config))
    x, t = setting.inputs(snn, batch)
    with torch.no_grad(), snn.carrying():
        snn(x, t)
        return {"seconds": setting.seconds(lambda: snn(x, t))}


def sampling(setting: Setting, config: UNetConfig, images: int, **options: object) -> dict[str, object]:
    net = setting.network(config)
    seconds = setting.seconds(lambda: generate(net, SampleConfig(**options), range(images)), rounds=2, warmup=1)
    return {"seconds": seconds, "images_per_second": images / seconds}


def profiled(setting: Setting, config: UNetConfig, batch: int) -> dict[str, object]:
    """The operators of a training step with --amp, by their own time on the device."""
    trainer, images = setting.trainer(config, batch, amp=True), setting.images(config, batch)
    trainer.train_step(images)
    on_gpu = setting.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as recorded:
        trainer.train_step(images)
        setting.wait()

    def own_time(event) -> float:
        return event.self_device_time_total if on_gpu else event.self_cpu_time_total

    events = sorted(recorded.key_averages(), key=own_time, reverse=True)[:25]
    return {"microseconds": {event.key[:80]: [own_time(event), event.count] for event in events}}


def main() -> None:
    setting = Setting.of_arguments(__doc__)
    quantized = UNetConfig(in_channels=3, bits=2, **setting.unet)
    batches = (4, 8) if setting.tiny else (128, 512)
    small, large = batches
    for name, amp, tf32 in (("float32", False, False), ("TF32", False, True), ("bfloat16", True, False)):
        for batch in batches if amp else (small,):
            label = f"training step, {name}, batch {batch}"
            setting.attempt(label, lambda b=batch, a=amp, f=tf32: training(setting, quantized, b, a, f))
    setting.attempt("profile", lambda: profiled(setting, quantized, small))
    for amp in (False, True):
        name = f"call, {'bfloat16' if amp else 'float32'}, batch {small}"
        setting.attempt(f"{name}: ANN", lambda a=amp: call(setting, quantized, small, lambda net: net, a))
        for schedule, spiking in CALLS.items():
            setting.attempt(
                f"{name}: {schedule}",
                lambda a=amp, s=spiking: call(setting, quantized, small, lambda net: ann2snn.convert(net, s), a),
            )
    setting.attempt(f"carried call, float32, batch {small}", lambda: carried(setting, quantized, small))
    for backend in ("torch", "triton"):
        with kernels_by(backend):
            label = f"{backend}'s kernels, batch {small}"
            setting.attempt(f"training, {label}", lambda: training(setting, quantized, small, True, False))
            setting.attempt(f"stream, {label}", lambda: call(setting, quantized, small, streaming))
    steps = 2 if setting.tiny else 20
    for eta in (0.0, 1.0):
        options = {"sampler": "ddim", "steps": steps, "eta": eta, "amp": setting.device.type == "cuda"}
        with in_tf32(False), contextlib.suppress(KeyboardInterrupt):
            label = f"sampling, ddim {steps}, eta {eta:g}, {small} images"
            setting.attempt(label, lambda o=options: sampling(setting, quantized, small, **o))


if __name__ == "__main__":
    main()
