"""Images a second of every sampler, and the large DDIM run on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ann2snn.config import SampleConfig
from ann2snn.generate.sampling import Given, generate

from .forward import SYNC, call
from .networks import inputs, make_snn
from .results import Bench, Case, Section
from .timing import timed

SAMPLERS: dict[str, dict[str, object]] = {  # fields of SampleConfig; those that can take any number of steps
    "ddim": {"sampler": "ddim"},
    "ddim, eta 1": {"sampler": "ddim", "eta": 1.0},
    "ddpm_strided": {"sampler": "ddpm_strided"},
    "analytic_dpm": {"sampler": "analytic_dpm"},
    "dpm_solver, order 2": {"sampler": "dpm_solver", "order": 2, "skip": "logsnr"},
    "dpmpp, order 2": {"sampler": "dpmpp", "order": 2, "skip": "logsnr"},
    "dpmpp_sde, order 2": {"sampler": "dpmpp_sde", "order": 2, "skip": "logsnr"},
    "gddim, order 2": {"sampler": "gddim", "order": 2},
    "euler": {"sampler": "euler"},
}
CALLS = "network calls alone"
DDIM_STEPS = 50
MATRIX = 8192


def samplers(bench: Bench) -> Section:
    """All samplers in the same rounds; what a sampler costs beyond its network calls is in the last column."""
    ch, steps, count = bench.plan.narrow[0], bench.plan.sampler_steps, bench.plan.sampler_images
    net = make_snn(bench, ch, 2, SYNC)
    jobs = {name: _generation(net, SampleConfig(**fields, steps=steps), count) for name, fields in SAMPLERS.items()}
    x, t = inputs(bench, net, count)
    times = bench.time(jobs | {CALLS: _repeated(call(net, x, t), steps)})
    rows = [[name, count / times.spread(name).median, *times.row(name, CALLS)] for name in (*jobs, CALLS)]
    header = ["sampler", "images/s", "ms (quartiles)", "over its network calls"]
    note = "ddpm itself visits every diffusion step and is left out; so is fsddim, which needs synaptic currents."
    title = f"Samplers, {steps} network calls, layer_sync at 2 bits, ch {ch}, {count} images"
    return Section(title, header, rows, note=note)


def _generation(net: nn.Module, sample: SampleConfig, count: int) -> Callable[[], Tensor]:
    gammas = torch.ones(
        net.diffusion.diffusion_steps, dtype=torch.float64
    )  # Γ_t of analytic_dpm; any value costs alike
    statistics = gammas if sample.sampler == "analytic_dpm" else None

    def job() -> Tensor:
        return generate(net, sample, range(count), Given(statistics))

    return job


def _repeated(job: Callable[[], object], times: int) -> Callable[[], None]:
    def jobs() -> None:
        for _ in range(times):
            job()

    return jobs


def ddim50(bench: Bench) -> Section:
    """Multiply-accumulates a second of a long DDIM run, against what the GPU reaches on large bf16 matrices."""
    ch = bench.plan.wide[0]
    title = f"DDIM-50 of {bench.plan.ddim_images:,} images, layer_sync at 2 bits, ch {ch}"
    section = Section(title, ["what", "value"])
    if bench.device.type != "cuda":
        section.note = "not measured: no GPU"
        return section
    net = make_snn(bench, ch, 2, SYNC)
    batch = min(bench.plan.ddim_batch, bench.plan.ddim_images)
    sample = SampleConfig("ddim", steps=DDIM_STEPS)

    def run(count: int) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            for start in range(0, count, batch):
                generate(net, sample, range(start, min(start + batch, count)))

    run(batch)  # warm-up
    rate = matrix_rate(bench)
    seconds = timed(lambda: run(bench.plan.ddim_images), bench.device)
    reached = call_flops(bench, net) * DDIM_STEPS * bench.plan.ddim_images / seconds
    section.rows = [
        ["seconds", seconds],
        ["images/s", bench.plan.ddim_images / seconds],
        ["TFLOP/s of convolutions and matrices", reached / 1e12],
        ["TFLOP/s of bf16 matrices, measured", rate / 1e12],
    ]
    section.cases = {"ddim50": [Case(f"batch {batch}", reached / rate)]}
    return section


def call_flops(bench: Bench, net: nn.Module) -> float:
    """Floating-point operations (a multiply-accumulate is two) of one image's network call."""
    x, t = inputs(bench, net, 1)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(x, t)
    return float(counter.get_total_flops())


def matrix_rate(bench: Bench) -> float:
    """Median floating-point operations a second of a product of two bf16 matrices."""
    a, b = (torch.randn(MATRIX, MATRIX, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    times = bench.time({"product": lambda: a @ b})
    return 2 * MATRIX**3 / times.spread("product").median
