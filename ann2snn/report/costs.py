"""The cost account: what `cost.json` holds, checked, and the tables made from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import DirectSpiking, SpikingConfig
from .parse import MALFORMED, Json, clean, integer, listed_reports, number, parse_direct, parse_spiking

MOST_REPORTS, MOST_LAYERS = 12, 1000
#: Price list and part of an energy, with its heading.
ENERGIES = (
    ("fp32", "compute_pj", "fp32"),
    ("fp32", "total_pj", "fp32 + memory"),
    ("int8", "compute_pj", "int8"),
    ("int8", "total_pj", "int8 + memory"),
    ("int8_state16", "total_pj", "16-bit state"),
    ("int8", "total_by_event_pj", "weights by event"),
)
COUNTS = ("spikes", "firing_rate", "ac", "mac", "additions", "updates")
LAYER_COUNTS = ("spikes", "updates", "ac", "mac", "additions", "dense", "parameters")
HEADINGS = {"ac": "AC", "mac": "MAC", "firing_rate": "rate"}
WAYS = {
    "fp32": "fp32 ANN", "quantized": "{bits}-bit ANN", "quantized_skipping_zeros": "{bits}-bit ANN, zeros skipped",
    "quantized_differences": "{bits}-bit ANN, differences of calls",
}  # fmt: skip

Energies = dict[tuple[str, str], float]


@dataclass(frozen=True)
class LayerRow:
    """One layer's counts per image and call, by name; missing is nan."""

    name: str
    kind: str
    inputs: str
    counts: dict[str, float]


@dataclass(frozen=True)
class CostRow:
    """One network under one way of counting. steps: latency in time steps, without and with a delay per layer."""

    label: str
    counts: dict[str, float]
    steps: tuple[int | None, int | None]
    energies: Energies


@dataclass(frozen=True)
class CostAccount:
    """One network: its rows in the table of totals, and its layers.

    direct: how a directly trained one ran; spiking: how a converted one did; carried: whether it kept its levels.
    steps_run: time steps of a call that were run, in the mean.
    """

    label: str
    rows: tuple[CostRow, ...]
    layers: tuple[LayerRow, ...]
    direct: DirectSpiking | None = None
    spiking: SpikingConfig | None = None
    carried: bool = False
    steps_run: float = math.nan


@dataclass(frozen=True)
class CostFile:
    """images, times: what was measured. calls: network calls per generated image.

    decoder: of a network on latents, per generated image.
    """

    images: int | None
    times: int | None
    calls: int | None
    accounts: tuple[CostAccount, ...]
    decoder: CostAccount | None = None

    def rows(self) -> list[CostRow]:
        return [row for account in self.accounts for row in account.rows]


def parse_costs(raw: Json, name: str, notes: list[str]) -> CostFile | None:
    """A cost file's content. An account that makes no sense is left out with a note."""
    listed = listed_reports(raw, name, notes)
    if listed is None:
        return None
    accounts = []
    for entry in listed[:MOST_REPORTS]:
        try:
            accounts.append(parse_account(entry))
        except MALFORMED:
            notes.append(f"{name}: a malformed report is left out")
    calls, decoder = integer(raw.get("calls_per_image")), None
    if raw.get("decoder") is not None:
        try:
            decoder = parse_account(raw["decoder"])
        except MALFORMED:
            notes.append(f"{name}: a malformed report of the decoder is left out")
    return CostFile(integer(raw.get("images")), integer(raw.get("times")), calls, tuple(accounts), decoder)


def parse_account(raw: dict) -> CostAccount:
    """What `CostReport.to_dict` gave. Raises one of MALFORMED."""
    label, bits = clean(raw["label"], 60), integer(raw.get("bits"))
    totals, differences = (
        {clean(key, 40): number(value) for key, value in fields.items()}
        for fields in (raw["totals"], raw.get("differences") or {})
    )
    steps = integer(raw.get("latency_steps")), integer(raw.get("latency_steps_delayed"))
    spiking = raw.get("spiking") is not None or "counted" in raw["energy"]
    direct = parse_direct(raw["spiking"], raw["spiking"]["arch"]) if "arch" in (raw.get("spiking") or {}) else None
    rows = []
    for way, by_prices in raw["energy"].items():
        counted = differences if way == "quantized_differences" else totals
        counts = {name: counted.get(name, math.nan) for name in COUNTS}
        if way == "all_mac":
            counts |= {"ac": 0.0, "mac": counts["ac"] + counts["mac"]}
        if way in ("fp32", "quantized"):
            counts["mac"] = totals.get("dense_mac", math.nan)
        if not spiking:
            counts |= {"spikes": math.nan, "firing_rate": math.nan}
        name = f"{label}, all MAC" if way == "all_mac" else WAYS[way].format(bits=bits) if way in WAYS else label
        rows.append(CostRow(name, counts, steps, parse_energies(by_prices)))
    layers = tuple(parse_layer(layer) for layer in raw["layers"][:MOST_LAYERS])
    converted = None if direct else _converted(raw.get("spiking"))
    carried, steps_run = raw.get("carried") is True, number(raw.get("steps_run"))
    return CostAccount(label, tuple(rows), layers, direct, converted, carried, steps_run)


def _converted(raw: Json) -> SpikingConfig | None:
    """How a converted network ran; None for an ANN, and where a file does not tell."""
    try:
        return None if raw is None else parse_spiking(raw)
    except MALFORMED:
        return None


def parse_energies(raw: dict) -> Energies:
    """Raises one of MALFORMED."""
    return {(prices, part): number(raw.get(prices, {}).get(part)) for prices, part, _ in ENERGIES}


def parse_layer(raw: dict) -> LayerRow:
    """Raises one of MALFORMED."""
    counts = {name: number(raw.get(name)) for name in LAYER_COUNTS}
    return LayerRow(clean(raw["name"], 60), clean(raw.get("kind", ""), 20), clean(raw.get("inputs", ""), 20), counts)


def cost_table(costs: CostFile) -> tuple[list[str], list[list[str]], range]:
    """(header, rows, numeric columns) as text, per image and network call: baselines, then the spiking networks."""
    header = ["network", "steps", *(HEADINGS.get(name, name) for name in COUNTS), *(title for *_, title in ENERGIES)]
    rows = [
        [
            row.label,
            steps_text(row.steps),
            *(f"{v:.3f}" if name == "firing_rate" and v == v else scaled(v) for name, v in row.counts.items()),
            *(joules(row.energies[prices, part]) for prices, part, _ in ENERGIES),
        ]
        for row in costs.rows()
    ]
    return header, rows, range(1, len(header))


def generation_table(costs: CostFile) -> tuple[list[str], list[list[str]], range]:
    """(header, rows, numeric columns) as text: energy of one generated image, all network calls together.

    Of a network on latents also of its decoder, which comes on top of each of the others.
    """
    header = ["network", *(title for *_, title in ENERGIES)]
    calls = math.nan if costs.calls is None else costs.calls
    rows = [
        [row.label, *(joules(calls * row.energies[prices, part]) for prices, part, _ in ENERGIES)]
        for row in costs.rows()
    ]
    if costs.decoder is not None:
        (row,) = costs.decoder.rows
        macs = scaled(row.counts["mac"], "MAC")
        once = [joules(row.energies[prices, part]) for prices, part, _ in ENERGIES]
        rows.append([f"plus, once per image, the decoder: an fp32 ANN of {macs}", *once])
    return header, rows, range(1, len(header))


def layer_table(account: CostAccount) -> tuple[list[str], list[list[str]], range]:
    """(header, rows, numeric columns) as text: one network's layers."""
    header = ["layer", "kind", "inputs", *(HEADINGS.get(name, name) for name in LAYER_COUNTS)]
    rows = [
        [row.name, row.kind, row.inputs or "–", *(scaled(row.counts[name]) for name in LAYER_COUNTS)]
        for row in account.layers
    ]
    return header, rows, range(3, len(header))


def steps_text(steps: tuple[int | None, int | None]) -> str:
    """Such as "5 / 25": without and with a delay of one step per layer; one number where both agree."""
    plain, delayed = steps
    if plain is None:
        return "–"
    return f"{plain:,}" if delayed in (None, plain) else f"{plain:,} / {delayed:,}"


def scaled(value: float, unit: str = "", first: int = 0) -> str:
    """Three significant digits with the prefix that fits, such as "1.07 M"; "–" for nan.

    first: the power of 1000 that `value` is given in.
    """
    if value != value:
        return "–"
    prefixes, power = "pnµm kMGTP", first + 4
    value = float(value)
    while abs(value) >= 999.5 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    digits = f"{value:.0f}" if abs(value) >= 99.95 or value == 0 else f"{value:.3g}"
    return f"{digits} {prefixes[power].strip()}{unit}".strip()


def joules(picojoules: float) -> str:
    """Such as "1.07 µJ"."""
    return scaled(picojoules, "J", first=-4)
