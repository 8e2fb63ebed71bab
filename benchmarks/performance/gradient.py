"""Gradients through spiking dynamics (`--ft_method=bptt`): the hand-written reverse against autograd, step by step."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import torch

from ann2snn.kernels import IFRule, IFState, if_scan, surrogate, torch_ref

from .forward import STREAM
from .networks import SEED, inputs, make_snn, window
from .results import Bench, Section

AUTOGRAD, BY_HAND = "autograd", "by hand"
Pass = Callable[[], None]


def bptt(bench: Bench) -> Section:
    """Forward and backward: of the scan alone, and of a whole network with all its weights."""
    section = Section("Gradients through time steps", ["forward and backward", "ms (quartiles)", "over by hand"])
    for bits in (2, 3):
        for where, run in (_scan(bench, bits), _network(bench, bits)):
            jobs = {f"{where}: {AUTOGRAD}": _by_autograd(run), f"{where}: {BY_HAND}": run}
            times = bench.time(jobs)
            section.rows += [[name, *times.row(name, f"{where}: {BY_HAND}")] for name in jobs]
    return section


def _scan(bench: Bench, bits: int) -> tuple[str, Pass]:
    """Signed bounded neurons whose thresholds learn."""
    ch, size = bench.plan.wide[0], bench.plan.unet.get("image_size", 32)
    generator = torch.Generator().manual_seed(SEED)
    shape = (window(bits), bench.plan.scan_batch, ch, size, size)
    current = torch.rand(shape, generator=generator).to(bench.device).requires_grad_()
    theta = torch.ones((), device=bench.device, requires_grad=True)
    upstream = torch.rand(shape, generator=generator).to(bench.device)

    def run() -> None:
        events = if_scan(current, IFState.rest(current[0], theta), theta, IFRule(), window(bits))
        torch.autograd.grad(events, (current, theta), upstream)

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
        with mock.patch.object(torch_ref, "bounded_scan_with_gradient", surrogate.if_scan_with_gradient):
            run()

    return job
