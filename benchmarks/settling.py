"""How many settling steps a `stream` network needs until it equals its quantized ANN.

    python -m benchmarks.settling --checkpoint logs/RUN/ckpt.pt --out docs/figures/settling.png

Measures the gap of the final prediction after 0, 1, 2, … settling steps, in float64, for the network of a checkpoint
and for the same architecture with random weights. Without --checkpoint a small network is trained first. Writes the
figure and, beside it, the numbers as JSON; prints them as a table.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import platform
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import ann2snn
from ann2snn.checkpoints import checkpoint
from ann2snn.config import DiffusionConfig, SampleConfig, SpikingConfig, TrainConfig, UNetConfig
from ann2snn.convert import measure_gap, relative_error
from ann2snn.data import load_dataset, to_model_range
from ann2snn.diffusion import VP
from ann2snn.distributed.world import ALONE
from ann2snn.files.atomic import write_text
from ann2snn.nets import UNet
from ann2snn.quant import QuantReLU
from ann2snn.run.folder import CHECKPOINT, RunFolder
from ann2snn.run.tables import text_table
from ann2snn.stages import train
from ann2snn.stages.plan import Schedule, Training

BITS = (2, 3, 4)
TIMES = (50, 700)
PUBLISHED = SpikingConfig("stream", signed=True, stream_norm="per_step", if_neuron="reference")
EXACT = 1e-12  # below this a float64 gap is rounding
COLOURS = {2: "#0072B2", 3: "#D55E00", 4: "#009E73"}
STYLES = ("-", (0, (4, 2)))  # of TIMES


@dataclass(frozen=True)
class Curve:
    """One network at one diffusion time.

    gaps: relative L2 error of the prediction after 0, 1, … settling steps. settled_after: the last settling step in
    which a neuron fired; None if one still fired in the last step that was run. extra_spikes: spikes of either sign
    over the net count, minus 1. layer_sync, published: the gap under that schedule and under the published dynamics.
    """

    network: str
    bits: int
    t: int
    gaps: tuple[float, ...]
    settled_after: int | None
    extra_spikes: float
    layer_sync: float
    published: float


class Activity:
    """Monitor: events of either sign per time step, and the net count, over all neurons."""

    def __init__(self) -> None:
        self.per_layer: dict[nn.Module, list[Tensor]] = {}
        self.net = 0.0

    def record(self, neuron: nn.Module, events: Tensor, is_count: bool) -> None:
        self.per_layer.setdefault(neuron, []).append(events.abs().flatten(1).sum(1))
        self.net += float(events.sum())

    def per_step(self) -> Tensor:
        """Events of each step [steps]."""
        return torch.stack([torch.cat(chunks) for chunks in self.per_layer.values()]).sum(0)


@torch.no_grad()
def settling_gaps(ann: UNet, x: Tensor, t: Tensor, settle_steps: int) -> tuple[tuple[float, ...], Activity]:
    """Gap after 0 … settle_steps settling steps, from one run: the schedule is causal, so a longer run contains the
    shorter ones. x [N, C, H, W], t [N], both of the network's dtype."""
    snn = ann2snn.convert(ann, schedule="stream", settle_steps=settle_steps)
    chunks: list[Tensor] = []  # [L, N, C, H, W] each: what the network answers in each step
    snn.net.register_forward_hook(lambda module, args, output: chunks.append(snn.clock.unfold(output)))
    activity = Activity()
    with snn.monitored(activity):
        snn(x, t)
    answers, target = torch.cat(chunks)[snn.clock.spike_steps - 1 :], ann(x, t)
    return tuple(relative_error(answer, target) for answer in answers), activity


def measure_curve(ann: UNet, network: str, x: Tensor, t: int, settle_steps: int) -> Curve:
    """Everything about one network at one diffusion time. x [N, C, H, W]; settle_steps ≥ 1."""
    times = torch.full((len(x),), t)
    gaps, activity = settling_gaps(ann, x, times, settle_steps)
    events = activity.per_step()
    active = events[-settle_steps:].nonzero().flatten() + 1  # settling steps in which something fired
    last = int(active[-1]) if len(active) else 0
    snn = ann2snn.convert(ann)
    return Curve(
        network,
        ann.config.bits,
        t,
        gaps,
        settled_after=None if last == settle_steps else last,
        extra_spikes=float(events.sum()) / activity.net - 1,
        layer_sync=measure_gap(ann, snn, x, times).prediction.error,
        published=measure_gap(ann, snn, x, times, PUBLISHED).prediction.error,
    )


def at_bits(ann: UNet, bits: int) -> UNet:
    """The same weights and clip values with another number of levels, in float64."""
    net = UNet(dataclasses.replace(ann.config, bits=bits), diffusion=ann.diffusion)
    net.load_state_dict(ann.state_dict())
    return net.double().eval()


def randomized(ann: UNet, seed: int) -> UNet:
    """A copy of `ann` with random weights that keep every layer at work; the hardest case for settling."""
    net = copy.deepcopy(ann)
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=1.2 / module.weight[0].numel() ** 0.5, generator=generator)
            nn.init.normal_(module.bias, std=0.3, generator=generator)
        elif isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.4, generator=generator)
        elif isinstance(module, QuantReLU):
            nn.init.uniform_(module.act_alpha, 0.7, 2.0, generator=generator)
    return net


def noised_samples(ann: UNet, images: int, t: int, seed: int) -> Tensor:
    """float64 [images, C, H, W]: the network's own images, noised to diffusion time t. No data set is needed."""
    x_0 = to_model_range(ann2snn.sample(ann, images, steps=20, seed=seed)).double()
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return VP(ann.diffusion).diffuse(x_0, torch.full((images,), t), noise)


def measure(ann: UNet, images: int, settle_steps: int, seed: int = 0) -> list[Curve]:
    """All curves of a network and of its randomized twin; both see the same inputs."""
    inputs = {t: noised_samples(ann, images, t, seed) for t in TIMES}
    curves = []
    for network, source in (("trained", ann), ("random", randomized(ann, seed))):
        for bits in BITS:
            net = at_bits(source, bits)
            curves += [measure_curve(net, network, x, t, settle_steps) for t, x in inputs.items()]
    return curves


def train_small_network(workdir: Path, steps: int) -> Path:
    """Train a 16×16 grey 2-bit network on the shipped images, or find it trained already; returns its checkpoint."""
    plan = Training(
        RunFolder(workdir),
        load_dataset("fashion_mnist_10k", "", 16),
        UNetConfig(1, 16, 24, (1, 2, 2), 1, dropout=0.0, bits=2, norm_groups=6),
        DiffusionConfig(),
        TrainConfig("fashion_mnist_10k", 2e-3, "cosine", 1.0, steps, 100, 32, ema_decay=0.99, dropout=0.0),
        SampleConfig("ddim", steps=20),
        Schedule(sample_step=0, save_step=100, log_step=10, sample_size=16),
        ALONE,
    )
    train.run(plan)
    return workdir / CHECKPOINT


def environment() -> dict[str, str]:
    """What a number depends on besides the code: processor, threads, torch, date."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def table(curves: list[Curve], about: dict[str, str]) -> str:
    """The numbers for a terminal."""
    steps = range(len(curves[0].gaps))
    head = [
        "network",
        "bits",
        "t",
        *(f"+{k}" for k in steps),
        "silent after",
        "extra spikes",
        "layer_sync",
        "published",
    ]
    rows = []
    for c in curves:
        settled = "-" if c.settled_after is None else f"+{c.settled_after}"
        extra = f"{c.extra_spikes:.0%}"
        gaps = [f"{gap:.1e}" for gap in (*c.gaps, c.layer_sync, c.published)]
        rows.append([c.network, str(c.bits), str(c.t), *gaps[:-2], settled, extra, *gaps[-2:]])
    return text_table(head, rows) + "\n" + ", ".join(f"{name}: {value}" for name, value in about.items())


# ---- figure --------------------------------------------------------------------------------------------------------

_TOP, _FLOOR, _SQUEEZE = -4.0, -15.0, 0.04  # decades between 1e-15 and 1e-4 are empty: drawn at 4 % of their height


def _squeezed(log_gap):
    middle = np.clip(log_gap, _FLOOR, _TOP)
    return np.maximum(log_gap, _TOP) + (middle - _TOP) * _SQUEEZE + (np.minimum(log_gap, _FLOOR) - _FLOOR) * 0.5


def _draw_curve(axes, curve: Curve) -> None:
    """The curve down to its landing on the floor; bit widths are shifted a little sideways to stay apart."""
    gaps = np.maximum(curve.gaps, 1e-16)
    landed = np.flatnonzero(gaps < EXACT)
    end = landed[0] + 1 if len(landed) else len(gaps)
    style = STYLES[TIMES.index(curve.t)]
    y = _squeezed(np.log10(gaps[:end]))
    x = np.arange(end) + 0.09 * (curve.bits - 3)
    axes.plot(x, y, linestyle=style, color=COLOURS[curve.bits], linewidth=1.6, zorder=3)
    axes.plot(
        x, y, "o", color=COLOURS[curve.bits], markersize=4, zorder=4, markeredgecolor="white", markeredgewidth=0.5
    )


def _draw_panel(axes, curves: list[Curve], title: str) -> None:
    for curve in curves:
        _draw_curve(axes, curve)
    for bits in sorted({c.bits for c in curves}):
        start = np.mean([_squeezed(np.log10(c.gaps[0])) for c in curves if c.bits == bits])
        axes.text(-0.25, start, f"{bits} bits", color=COLOURS[bits], ha="right", va="center", weight="bold")
    steps = _width(curves)
    axes.set_xlim(-1.35, steps - 0.5)
    axes.set_xticks(range(steps), [f"+{k}" for k in range(steps)])
    axes.set_xlabel("settling steps after the T steps of input")
    axes.set_title(title, fontsize=10)


def _draw_axis(axes) -> None:
    """Log axis whose empty middle is squeezed and says so."""
    axes.set_ylim(*_squeezed(np.array([-16.3, -0.2])))
    ticks = np.array([-1, -2, -3, -4, -15, -16])
    axes.set_yticks(_squeezed(ticks), [f"$10^{{{k}}}$" for k in ticks])
    axes.axhspan(*_squeezed(np.array([_FLOOR, _TOP])), facecolor="0.94", hatch="////", edgecolor="0.87", linewidth=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92", zorder=0)


def _landings(curves: list[Curve]) -> list[int | None]:
    """Per curve, the first number of settling steps whose gap is rounding."""
    return [next((k for k, gap in enumerate(c.gaps) if gap < EXACT), None) for c in curves]


def _width(curves: list[Curve]) -> int:
    """Steps to show: up to the last landing, and one more."""
    longest = len(curves[0].gaps)
    return min(longest, max(longest if k is None else k for k in _landings(curves)) + 2)


def _exact_from(curves: list[Curve]) -> str:
    landings = _landings(curves)
    if None in landings:
        return f"not yet equal after {len(curves[0].gaps) - 1} steps"
    low, high = min(landings), max(landings)
    return f"equal after {low} steps" if low == high else f"equal after {low} to {high} steps"


def draw(curves: list[Curve], path: Path) -> None:
    """One panel a network: gap over settling steps, bits as colours, diffusion time as line style."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups = {
        "trained network": [c for c in curves if c.network == "trained"],
        "random weights": [c for c in curves if c.network == "random"],
    }
    figure = Figure(figsize=(9.2, 3.9), layout="constrained")
    widths = [_width(group) + 1 for group in groups.values()]
    panels = figure.subplots(1, 2, sharey=True, width_ratios=widths)
    for axes, (title, group) in zip(panels, groups.items(), strict=True):
        _draw_panel(axes, group, f"{title}: {_exact_from(group)}")
        _draw_axis(axes)
    panels[0].set_ylabel("gap to the quantized ANN\n(relative L2, float64)")
    for y, text in ((_squeezed(-15.7), "rounding error"), (_squeezed(-9.5), "axis squeezed")):
        panels[0].text(-1.2, y, text, ha="left", va="center", color="0.35", fontsize=8)
    keys = [Line2D([], [], color="0.3", linestyle=s, label=f"t = {t}") for t, s in zip(TIMES, STYLES, strict=True)]
    panels[0].legend(handles=keys, frameon=False, loc="upper right", handlelength=3)
    figure.suptitle("A causal spiking U-Net becomes equal to its quantized ANN a few steps after its input has stopped")
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the figure (.png); numbers go to the same name .json")
    parser.add_argument("--checkpoint", type=Path, help="ckpt.pt of a quantized network; default: train a small one")
    parser.add_argument("--workdir", type=Path, default=Path("logs/settling"), help="where the small network is kept")
    parser.add_argument("--train_steps", type=int, default=500, help="training steps of the small network")
    parser.add_argument("--settle_steps", type=int, default=10, help="longest settling to measure (at least 1)")
    parser.add_argument("--images", type=int, default=8, help="images per diffusion time")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    loaded = checkpoint.load(args.checkpoint or train_small_network(args.workdir, args.train_steps))
    curves = measure(loaded.net, args.images, args.settle_steps, args.seed)
    about = {
        "network": f"{sum(p.numel() for p in loaded.net.parameters())} parameters, "
        f"trained at {loaded.net.config.bits} bits for {loaded.step} steps",
        "images": str(args.images),
        **environment(),
    }
    print(table(curves, about))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    numbers = {"about": about, "unet": loaded.net.config.to_dict(), "curves": [dataclasses.asdict(c) for c in curves]}
    write_text(args.out.with_suffix(".json"), json.dumps(numbers, indent=1) + "\n")
    draw(curves, args.out)


if __name__ == "__main__":
    main()
