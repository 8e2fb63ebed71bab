"""Gradients through spiking dynamics (`--ft_method=bptt`): the hand-written reverse against autograd, step by step."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from unittest import mock

import torch

from ann2snn.kernels import Levels, Neurons, Pace, follow

from .forward import STREAM
from .networks import SEED, inputs, make_snn, window
from .results import Bench, Section

AUTOGRAD, BY_HAND = "autograd", "by hand"
MODULE = importlib.import_module("ann2snn.kernels.follow")  # the package calls the function so
Pass = Callable[[], None]


def bptt(bench: Bench) -> Section:
    """Forward and backward: of the scan alone, and of a whole network with all its weights."""
    section = Section("Gradients through time steps", ["forward and backward", "ms (quartiles)", "over by hand"])
    for bits in (2, 3):
        for label, run in (_scan(bench, bits), _network(bench, bits)):
            jobs = {f"{label}: {AUTOGRAD}": _by_autograd(run), f"{label}: {BY_HAND}": run}
            times = bench.time(jobs)
            section.rows += [[name, *times.row(name, f"{label}: {BY_HAND}")] for name in jobs]
    return section


def _scan(bench: Bench, bits: int) -> tuple[str, Pass]:
    """Neurons whose thresholds learn."""
    ch, size = bench.plan.wide[0], bench.plan.unet.get("image_size", 32)
    generator = torch.Generator().manual_seed(SEED)
    shape = (window(bits), bench.plan.scan_batch, ch, size, size)
    means = torch.rand(shape, generator=generator).to(bench.device).requires_grad_()
    step = torch.tensor(1 / window(bits), device=bench.device, requires_grad=True)
    neurons = Neurons(Levels(step, 0, window(bits)))
    paces = [Pace(step / window(bits), 1) for step in range(1, window(bits) + 1)]
    upstream = torch.rand(shape, generator=generator).to(bench.device)

    def run() -> None:
        torch.autograd.grad(follow(means, None, neurons, paces)[0], (means, step), upstream)

    return f"scan, T = {window(bits)}, {list(shape[1:])} neurons", run


def _network(bench: Bench, bits: int) -> tuple[str, Pass]:
    ch, batch = bench.plan.narrow
    batch = max(1, batch // 4)
    snn = make_snn(bench, ch, bits, STREAM)
    x, t = inputs(bench, snn, batch)

    def run() -> None:
        snn.zero_grad()
        snn(x, t).square().mean().backward()

    return f"stream, T = {window(bits)}, ch {ch}, batch {batch}", run


def _by_autograd(run: Pass) -> Pass:
    def job() -> None:
        with mock.patch.object(MODULE, "_Follow", _Autograd):
            run()

    return job


class _Autograd:
    """In the place of the function with the hand-written reverse: what specifies it."""

    @staticmethod
    def apply(x, level, step, charge, offset, neurons, paces, report):
        return MODULE.soft_follow(x, level, neurons, paces, report, smooth=False)
