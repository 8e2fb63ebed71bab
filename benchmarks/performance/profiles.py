"""Where the time goes: the ten operations with the largest own time."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

from .forward import STREAM, SYNC, call
from .networks import inputs, make_ann, make_snn
from .results import Bench, Section
from .training import make_images, make_trainer

TOP = 10
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is chatty on stderr otherwise


def profiles(bench: Bench) -> list[Section]:
    """One table each for the fp32 ANN, both schedules at T = 3, and the 2-bit training step."""
    ch, batch = bench.plan.wide
    nets = {
        "fp32 ANN": make_ann(bench, ch),
        "layer_sync, T = 3": make_snn(bench, ch, 2, SYNC),
        "stream, T = 3": make_snn(bench, ch, 2, STREAM),
    }
    x, t = inputs(bench, nets["fp32 ANN"], batch)
    sections = [_profile(bench, f"{name}, ch {ch}, batch {batch}", call(net, x, t)) for name, net in nets.items()]
    images = make_images(bench)
    trainer = make_trainer(bench, 2, images)
    title = f"2-bit training step, ch {ch}, batch {len(images)}"
    return [*sections, _profile(bench, title, lambda: trainer.train_step(images))]


def _profile(bench: Bench, title: str, job: Callable[[], object]) -> Section:
    for _ in range(bench.plan.warmup):
        job()
    gpu = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as recorded:
        job()
    attribute = "self_device_time_total" if gpu else "self_cpu_time_total"
    events = [event for event in recorded.key_averages() if getattr(event, attribute) > 0]
    total = sum(getattr(event, attribute) for event in events) or 1
    events.sort(key=lambda event: getattr(event, attribute), reverse=True)
    rows = [
        [event.key[:60], getattr(event, attribute) / 1e3, 100 * getattr(event, attribute) / total, event.count]
        for event in events[:TOP]
    ]
    return Section(f"Profile: {title}", ["operation", "own ms", "%", "calls"], rows)
