"""Step 1: every network and schedule is placed, trained for a step and called; waits for the GPU counted by line."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator

import torch

import ann2snn
from ann2snn.config import SampleConfig, SpikingConfig
from ann2snn.generate.sampling import generate
from benchmarks.gpu.setting import Setting

SCHEDULES = {
    "layer_sync": SpikingConfig(),
    "stream": SpikingConfig("stream"),
    "stream, settled": SpikingConfig("stream", settle_steps="auto"),
    "stream, burst": SpikingConfig("stream", burst=3),
    "published": SpikingConfig("stream", stream_norm="per_step", if_neuron="reference"),
}
SAMPLERS = {
    **{name: {"sampler": name, "steps": 3} for name in ("ddim", "ddpm_strided", "dpm_solver", "dpmpp", "dpmpp_sde")},
    "ddim, noise": {"sampler": "ddim", "steps": 3, "eta": 1.0},
    "gddim": {"sampler": "gddim", "steps": 5, "corrector": "pec"},
}


@contextlib.contextmanager
def waits(setting: Setting) -> Iterator[Counter]:
    """Counts, by file and line, where the program waits for the GPU."""
    counts: Counter = Counter()
    if setting.device.type != "cuda":
        yield counts
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            counts[f"{warning.filename.rpartition('site-packages/')[2]}:{warning.lineno}"] += 1


def trained(setting: Setting, config: object) -> dict[str, object]:
    trainer = setting.trainer(config, 4)
    images = setting.images(config, 4)
    loss, _ = trainer.train_step(images)
    with waits(setting) as counts:
        trainer.train_step(images)
    return {"loss": float(loss), "waits": dict(counts)}


def called(setting: Setting, config: object, spiking: SpikingConfig | None, carry: bool = False) -> dict[str, object]:
    ann = setting.network(config)
    net = ann if spiking is None else ann2snn.convert(ann, spiking)
    x, t = setting.inputs(net, 4)
    with torch.no_grad(), net.carrying() if carry else contextlib.nullcontext():
        net(x, t)
        with waits(setting) as counts:
            answer = net(x + 0.01, t)
    return {"finite": bool(answer.isfinite().all()), "waits": dict(counts)}


def sampled(setting: Setting, options: dict[str, object]) -> dict[str, object]:
    ann = setting.network(setting.configs()["unet, 2 bits"])
    config = SampleConfig(seed=0, **options)
    generate(ann, config, range(4))
    with waits(setting) as counts:
        images = generate(ann, config, range(4))
    return {"mean": float(images.float().mean()), "waits": dict(counts)}


def main() -> None:
    setting = Setting.of_arguments(__doc__)
    for name, config in setting.configs().items():
        setting.attempt(f"train: {name}", lambda c=config: trained(setting, c))
        setting.attempt(f"call: {name}", lambda c=config: called(setting, c, None))
    for name in ("unet, 2 bits", "unet, 4 bits, spike-driven, 4-bit weights", "attention, 3 bits"):
        config = setting.configs()[name]
        for schedule, spiking in SCHEDULES.items():
            setting.attempt(f"{schedule}: {name}", lambda c=config, s=spiking: called(setting, c, s))
        setting.attempt(f"carried: {name}", lambda c=config: called(setting, c, SpikingConfig(), True))
    for name, options in SAMPLERS.items():
        setting.attempt(f"sample: {name}", lambda o=options: sampled(setting, o))


if __name__ == "__main__":
    main()
