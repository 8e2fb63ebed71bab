"""The same work in other people's libraries, where they are installed; see benchmarks/requirements.txt."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from ann2snn.kernels import IFState, Levels, Neurons, Pace, follow, if_scan

from .forward import call
from .networks import inputs, make_ann, window
from .results import Bench, Section

MISSING = "not installed"
SCAN_BITS = 3
OURS, LEVELS = "ours, published and unsigned", "ours, a level that follows its target"


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def scan(bench: Bench) -> Section:
    """IF neurons over [T, N, C, H, W], from a membrane of 0, without gradients.

    The published neuron does what the peers do, fire at θ and subtract θ, and spikes are compared with its own. The
    neuron of converted networks reads means and answers with means instead.
    """
    steps, ch = window(SCAN_BITS), bench.plan.wide[0]
    size = bench.plan.unet.get("image_size", 32)
    generator = torch.Generator().manual_seed(0)
    current = torch.rand(steps, bench.plan.scan_batch, ch, size, size, generator=generator).to(bench.device)
    scans = {OURS: _published, LEVELS: _levels}
    makers = {"spikingjelly": _spikingjelly, "snntorch": _snntorch}
    scans |= {name: make(bench) for name, make in makers.items() if installed(name)}
    jobs = {name: _inferred(run, current) for name, run in scans.items()}
    expected = jobs[OURS]()
    differ = {name: float((job() != expected).float().mean()) for name, job in jobs.items() if name != LEVELS}
    times = bench.time(jobs)
    rows = [[name, *times.row(name, OURS), differ.get(name)] for name in jobs]
    rows += [[name, MISSING, None, None] for name in makers if name not in jobs]
    title = f"Neuron scan, T = {steps}, {list(current.shape[1:])} neurons"
    return Section(title, ["neuron", "ms (quartiles)", "over ours", "share of spikes that differ"], rows)


def _inferred(run: Callable[[Tensor], Tensor], current: Tensor) -> Callable[[], Tensor]:
    def job() -> Tensor:
        with torch.no_grad():
            return run(current)

    return job


def _published(current: Tensor) -> Tensor:
    theta = torch.ones((), device=current.device)
    return if_scan(current, IFState.rest(current[0], theta, 0.0), theta, signed=False)


def _levels(means: Tensor) -> Tensor:
    """As many steps of the neuron that converted networks have."""
    steps = len(means)
    levels = Levels(torch.tensor(1 / steps, device=means.device), 0, steps)
    return follow(means, None, Neurons(levels), [Pace(step / steps, 1) for step in range(1, steps + 1)])[0]


def _spikingjelly(bench: Bench) -> Callable[[Tensor], Tensor]:
    """IFNode in multi-step mode, soft reset. Older versions are asked for CuPy on a GPU; newer choose themselves."""
    from spikingjelly.activation_based import neuron

    node = neuron.IFNode(v_threshold=1.0, v_reset=None, step_mode="m").to(bench.device).eval()
    if bench.device.type == "cuda" and "cupy" in getattr(node, "supported_backends", ()) and installed("cupy"):
        node.backend = "cupy"

    def run(current: Tensor) -> Tensor:
        node.reset()
        return node(current)

    return run


def _snntorch(bench: Bench) -> Callable[[Tensor], Tensor]:
    """Leaky that does not leak, called once a time step. It fires above θ, not at it."""
    from snntorch import Leaky

    node = Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract", reset_delay=False).to(bench.device)

    def run(current: Tensor) -> Tensor:
        membrane, spikes = node.reset_mem(), []
        for now in current:
            spike, membrane = node(now, membrane)
            spikes.append(spike)
        return torch.stack(spikes)

    return run


def unets(bench: Bench) -> Section:
    """diffusers' UNet2DModel with our widths and blocks and no attention, against our fp32 ANN."""
    ch, batch = bench.plan.wide
    ours = make_ann(bench, ch)
    x, t = inputs(bench, ours, batch)
    nets, jobs = {"ours": ours}, {"ours": call(ours, x, t)}
    if installed("diffusers"):
        nets["diffusers"] = theirs = _diffusers(bench, ch)
        jobs["diffusers"] = call(lambda x, t: theirs(x, t).sample, x, t)
    times = bench.time(jobs)
    count = {name: sum(p.numel() for p in net.parameters()) / 1e6 for name, net in nets.items()}
    rows = [[name, count[name], *times.row(name, "ours")] for name in jobs]
    rows += [] if "diffusers" in jobs else [["diffusers", None, MISSING, None]]
    header = ["U-Net", "million parameters", "ms (quartiles)", "over ours"]
    return Section(f"fp32 U-Net forward, ch {ch}, batch {batch}", header, rows)


def _diffusers(bench: Bench, ch: int) -> torch.nn.Module:
    from diffusers import UNet2DModel

    config = make_ann(bench, ch).config
    levels = len(config.ch_mult)
    net = UNet2DModel(
        sample_size=config.image_size.stored,
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        block_out_channels=tuple(ch * mult for mult in config.ch_mult),
        layers_per_block=config.num_res_blocks,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        norm_num_groups=config.norm_groups,
        add_attention=False,
    )
    layout = torch.channels_last if bench.device.type == "cuda" else torch.preserve_format
    return net.to(device=bench.device, memory_format=layout).eval()
