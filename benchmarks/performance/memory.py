"""Peak memory of a network call or training step.

GPU: torch's largest allocation while the network is built and called. CPU: a process of its own for every row, peak
resident memory after the call less the peak once everything is imported, so it holds weights, activations and the
libraries' scratch space. Linux only: it reads VmHWM, because a child's `ru_maxrss` begins with its parent's.

    python -m benchmarks.performance.memory '{"kind": "stream", …}'     # the child: prints bytes
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ann2snn.config import FULL_PRECISION, SpikingConfig
from ann2snn.convert.to_snn import attach
from ann2snn.distributed.runtime import place
from ann2snn.nets import UNet

from .forward import call
from .masked import MaskedDenoiser
from .networks import PUBLISHED, config_of, inputs, window
from .plan import Plan
from .results import Bench, Case, Section
from .training import make_images, make_plain, make_trainer

ROOT = Path(__file__).parents[2]
STATUS = Path("/proc/self/status")
SPIKING = {"layer_sync": SpikingConfig("layer_sync"), "stream": SpikingConfig("stream"), "masks": PUBLISHED}
ANN, TRAINER, PLAIN = "ann", "trainer", "plain"
CHILD_SECONDS = 900
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Job:
    """kind: `ANN`, a key of `SPIKING`, `TRAINER` or `PLAIN`."""

    kind: str
    bits: int = FULL_PRECISION


OTHERS = {
    "stream, T = 3": Job("stream", 2),
    "loop with masks, T = 3": Job("masks", 2),
    "training step, fp32": Job(TRAINER),
    "training step, 2 bits": Job(TRAINER, 2),
    "training step, plain loop": Job(PLAIN),
}


def memory(bench: Bench) -> Section:
    """Every row alone in a fresh process, or on a GPU that was emptied before it."""
    levels = {f"layer_sync, T = {window(bits)}": Job("layer_sync", bits) for bits in bench.plan.memory_bits}
    other_jobs = {name: job for name, job in OTHERS.items() if job.kind in bench.plan.memory_rows}
    jobs = {"fp32 ANN": Job(ANN)} | levels | other_jobs
    peaks = {name: peak(bench, job) for name, job in jobs.items()}
    ch, batch = bench.plan.wide
    weights = sum(p.numel() * p.element_size() for p in UNet(config_of(bench, ch)).parameters())
    rows, cases = [], []
    for name, peak_bytes in peaks.items():
        ratio = None if peak_bytes is None else peak_bytes / peaks["fp32 ANN"]
        trains = jobs[name].kind in (TRAINER, PLAIN)
        beyond = None if peak_bytes is None or trains else (peak_bytes - weights) / MIB
        rows.append([name, None if peak_bytes is None else peak_bytes / MIB, ratio, beyond])
        if name in levels and ratio is not None:
            cases.append(Case(name.removeprefix("layer_sync, "), ratio))
    title = f"Peak memory, ch {ch}, batch {batch} (training: {bench.plan.train_batch})"
    header = ["what", "MiB", "over the fp32 ANN", "MiB beyond the weights"]
    return Section(title, header, rows, {"layer_sync_memory": cases})


def peak(bench: Bench, job: Job) -> float | None:
    """Peak bytes of a job; None where they cannot be had."""
    if bench.device.type == "cuda":
        return _gpu_peak(bench, job)
    return _child_peak(bench, job) if STATUS.exists() else None


def _gpu_peak(bench: Bench, job: Job) -> float:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(bench.device)
    torch.cuda.reset_peak_memory_stats(bench.device)
    prepare(bench, job)()
    torch.cuda.synchronize(bench.device)
    return float(torch.cuda.max_memory_allocated(bench.device) - before)


def _child_peak(bench: Bench, job: Job) -> float:
    """Raises RuntimeError, with the child's last line, if it fails."""
    spec = {"job": dataclasses.asdict(job), "plan": dataclasses.asdict(bench.plan), "threads": torch.get_num_threads()}
    # Freed blocks go back to the system at once, so that resident memory follows what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", __name__, json.dumps(spec)]
    completed = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=CHILD_SECONDS, check=False
    )
    if completed.returncode:
        raise RuntimeError(f"{job}: {completed.stderr.strip().splitlines()[-1:]}")
    return float(completed.stdout.split()[-1])


def prepare(bench: Bench, job: Job) -> Callable[[], object]:
    """What a row runs once. Networks have fresh weights: memory does not depend on their values."""
    if job.kind in (TRAINER, PLAIN):
        images = make_images(bench)
        if job.kind == PLAIN:
            plain = make_plain(bench)
            return lambda: plain.step(images)
        trainer = make_trainer(bench, job.bits, images)
        return lambda: trainer.train_step(images)
    ch, batch = bench.plan.wide
    net = UNet(config_of(bench, ch, job.bits)).eval()
    net = place(net if job.kind == ANN else attach(net, SPIKING[job.kind]), bench.device)
    run = MaskedDenoiser(net) if job.kind == "masks" else net
    return call(run, *inputs(bench, net, batch))


def resident_peak() -> int:
    """Bytes of the largest resident set of this process so far."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _child(text: str) -> None:
    spec = json.loads(text)
    torch.set_num_threads(spec["threads"])
    bench = Bench(Plan(**spec["plan"]), torch.device("cpu"))
    torch.nn.functional.conv2d(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3))  # load the convolution library
    before = resident_peak()
    prepare(bench, Job(**spec["job"]))()
    print(resident_peak() - before)


if __name__ == "__main__":
    _child(sys.argv[1])
