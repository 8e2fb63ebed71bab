"""The picture of `benchmarks.samplers`: score over network calls, one curve a sampler, one panel a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

WARM = ("#D55E00", "#E69F00", "#CC3377", "#7A3B00")  # samplers that draw noise: solid lines, full markers
COLD = ("#000000", "#0072B2", "#56B4E9", "#009E73", "#44CC99", "#6A51A3")  # deterministic ones: dashed, open markers
MARKERS = ("o", "s", "^", "D", "v", "P")
TITLES = {"ann": "quantized ANN (layer_sync is the same)", "stream": "spiking network, stream"}


def styles(names: Sequence[str], stochastic: Sequence[str]) -> dict[str, dict[str, object]]:
    """Line style of every sampler, the same in all panels."""
    styles_by_name: dict[str, dict[str, object]] = {}
    for noisy, colours in ((True, WARM), (False, COLD)):
        for i, name in enumerate(n for n in names if (n in stochastic) == noisy):
            colour = colours[i % len(colours)]
            styles_by_name[name] = {"color": colour, "marker": MARKERS[i % len(MARKERS)]}
            styles_by_name[name] |= {
                "linestyle": "-" if noisy else (0, (4, 2)),
                "markerfacecolor": colour if noisy else "white",
            }
    return styles_by_name


def draw(rows: Sequence[dict], stochastic: Sequence[str], label: str, path: Path) -> None:
    """Write the figure. rows: each with network, sampler, nfe and score. label: what the score is."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    networks = list(dict.fromkeys(row["network"] for row in rows))
    looks = styles(list(dict.fromkeys(row["sampler"] for row in rows)), stochastic)
    figure = Figure(figsize=(4.1 * len(networks) + 1.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(networks), sharex=True, sharey=True, squeeze=False)[0]
    for axes, network in zip(panels, networks, strict=True):
        for name, look in looks.items():
            curve = sorted((r["nfe"], r["score"]) for r in rows if (r["network"], r["sampler"]) == (network, name))
            axes.plot(*zip(*curve, strict=True), label=name, linewidth=1.5, markersize=5, **look) if curve else None
        calls = sorted({row["nfe"] for row in rows})
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(calls, [str(n) for n in calls])
        axes.set_xlabel("network calls an image (NFE)")
        axes.set_title(TITLES.get(network, network), fontsize=10)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel(label)
    handles = {h.get_label(): h for axes in panels for h in axes.get_lines()}
    figure.legend(handles=handles.values(), loc="outside right center", frameon=False, handlelength=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
