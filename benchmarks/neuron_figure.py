"""The fact that conversion rests on, in one picture: an integrate-and-fire neuron counts what a quantizer computes.

    python -m benchmarks.neuron_figure --out docs/figures/neuron.png [--gaps docs/figures/settling.json]

Left, the 2-bit quantizer and the spike counts of simulated neurons; middle, one neuron's membrane over its T steps;
right, if a file of `benchmarks.settling` is given, the gap of a whole network under each way of running it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from ann2snn.kernels import Levels, Neurons, Pace, follow
from ann2snn.quant.functional import uniform_levels

BITS, SPIKE_STEPS = 2, 3
CURRENT = 0.6  # of the neuron in the middle panel, in units of θ
BLUE, RED, GREY = "#0072B2", "#D55E00", "0.45"


def levels_of(currents: torch.Tensor, spike_steps: int) -> torch.Tensor:
    """Levels after each step of neurons with θ = 1 under constant current [N] → [spike_steps, N]."""
    neurons = Neurons(Levels(torch.tensor(1 / spike_steps, dtype=currents.dtype), 0, spike_steps))
    level, levels = torch.zeros_like(currents)[None], []
    for step in range(1, spike_steps + 1):
        _, level = follow(currents[None, None], level, neurons, [Pace(step / spike_steps, 1)])
        levels.append(level[0].clone())
    return torch.stack(levels)


def spike_counts(currents: torch.Tensor, spike_steps: int) -> torch.Tensor:
    """Spikes of neurons with θ = 1 after `spike_steps` steps of constant current [N] → [N]."""
    return levels_of(currents, spike_steps)[-1]


def membrane_path(current: float, spike_steps: int) -> tuple[list[float], list[float], list[int]]:
    """(times, membrane) of a polyline with θ = 1, jumps included, and the steps that ended in a spike.

    The membrane is what has arrived less what has been sent, above an initial potential of θ/2.
    """
    levels = [0.0, *levels_of(torch.tensor([current], dtype=torch.float64), spike_steps).flatten().tolist()]
    times, values, spikes = [0.0], [0.5], []
    for step in range(1, spike_steps + 1):
        arrived = 0.5 + step * current
        times += [step, step]
        values += [arrived - levels[step - 1], arrived - levels[step]]
        spikes += [step] if levels[step] > levels[step - 1] else []
    return times, values, spikes


def network_gaps(path: Path) -> tuple[list[tuple[str, float]], str]:
    """[(way of running, gap)] of the trained 2-bit network at the first diffusion time on file, and a caption."""
    curves = [c for c in json.loads(path.read_text())["curves"] if c["network"] == "trained" and c["bits"] == BITS]
    curve = curves[0]
    settled = "stream, settled" if curve["settled_after"] is None else f"stream, +{curve['settled_after']} steps"
    rows = [
        ("published dynamics", curve["published"]),
        ("stream", curve["gaps"][0]),
        (settled, curve["gaps"][-1]),
        ("layer_sync", curve["layer_sync"]),
    ]
    return rows, f"{BITS}-bit U-Net, t = {curve['t']}"


def draw_staircase(axes) -> None:
    """The quantizer as a line, simulated neurons as markers."""
    fine = torch.linspace(-0.35, 1.45, 3000, dtype=torch.float64)
    some = torch.linspace(-0.325, 1.375, 35, dtype=torch.float64)  # clear of the ties
    axes.plot(fine, uniform_levels(fine, 1.0, BITS), color=BLUE, linewidth=1.6, label="quantizer")
    axes.plot(some, spike_counts(some, SPIKE_STEPS), "o", color=RED, markersize=4.5, label="spikes of an IF neuron")
    axes.set_xlabel("constant current x / θ")
    axes.set_ylabel(f"level, or spikes in T = {SPIKE_STEPS} steps")
    axes.set_yticks(range(SPIKE_STEPS + 1))
    axes.legend(frameon=False, loc="upper left", handlelength=1.2)
    axes.set_ylim(-0.2, 4.1)
    axes.set_title("the spike count is the quantizer", fontsize=10)


def draw_membrane(axes) -> None:
    """Charge, fire, subtract."""
    times, values, spikes = membrane_path(CURRENT, SPIKE_STEPS)
    axes.axhline(1, color=GREY, linestyle=":", linewidth=1.2)
    axes.text(0.02, 1.04, "threshold θ", color=GREY, fontsize=8.5)
    axes.plot(times, values, color=BLUE, linewidth=1.6)
    axes.annotate("starts at θ/2", (0, 0.5), (0.03, 0.36), color=GREY, fontsize=8)
    for step in spikes:
        axes.plot([step, step], [1.5, 1.72], color=RED, linewidth=3, solid_capstyle="butt")
        axes.annotate("− θ", (step + 0.06, 0.62), color=BLUE, fontsize=9)
    axes.text(0.02, 1.61, "spikes", color=RED, va="center", fontsize=9)
    axes.set_xlim(-0.1, SPIKE_STEPS + 0.4)
    axes.set_ylim(0, 1.8)
    axes.set_xticks(range(SPIKE_STEPS + 1))
    axes.set_yticks([0, 0.5, 1], ["0", "θ/2", "θ"])
    axes.set_xlabel("time step")
    axes.set_ylabel("membrane")
    count = int(spike_counts(torch.tensor([CURRENT], dtype=torch.float64), SPIKE_STEPS))
    axes.set_title(f"x = {CURRENT} θ: ⌊{SPIKE_STEPS}·{CURRENT} + ½⌋ = {count} spikes", fontsize=10)


def draw_gaps(axes, rows: list[tuple[str, float]], caption: str) -> None:
    """One dot a way of running the network, on a log axis; the numbers stand beside the dots."""
    for row, (_, gap) in enumerate(rows):
        exact = gap < 1e-12
        axes.plot(max(gap, 1e-16), row, "o", color=BLUE if exact else RED, markersize=7)
        text = "exactly 0" if gap == 0 else f"{gap:.0e}" if exact else f"{gap:.1%}"
        axes.annotate(
            text, (max(gap, 1e-16), row), (9 if exact else -9, 0), textcoords="offset points",
            ha="left" if exact else "right", va="center", fontsize=9,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(1e-17, 3)
    axes.set_xticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.set_xlabel("gap to the quantized ANN (relative L2)")
    axes.set_title(f"a whole network ({caption})", fontsize=10)


def draw(path: Path, gaps: Path | None = None) -> None:
    """Write the figure to `path`; `gaps` is a JSON file of `benchmarks.settling`."""
    from matplotlib.figure import Figure

    count = 2 if gaps is None else 3
    figure = Figure(figsize=(3.6 * count + (0.6 if gaps else 0), 3.0), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, count))
    draw_staircase(panels[0])
    draw_membrane(panels[1])
    if gaps is not None:
        draw_gaps(panels[2], *network_gaps(gaps))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the figure (.png)")
    parser.add_argument("--gaps", type=Path, help="numbers of benchmarks.settling (.json), for the third panel")
    args = parser.parse_args(argv)
    draw(args.out, args.gaps)


if __name__ == "__main__":
    main()
