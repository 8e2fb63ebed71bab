"""Measure what networks cost on states of the sampling path, write it down and print it."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..config import SpikingConfig
from ..convert import SpikingNetwork
from ..cost import FP32, INT8, INT8_STATE16, CostReport, count_calls, count_operations
from ..diffusion.process import network_shape
from ..files.atomic import write_text
from ..generate.probe import sampler_states
from ..nets.architecture import Network
from ..nets.direct import DirectDenoiser
from ..report.costs import cost_table, generation_table, parse_costs
from ..run.folder import COST_FILE
from ..run.tables import counted, text_table

COST_IMAGES = 2  # suffice: counts vary little between images
COST_TIMES = 4  # diffusion times they are taken at


def measure_and_write(
    path: Path,
    ann: Network,
    snn_by_name: Mapping[str, SpikingNetwork],
    modes: Sequence[SpikingConfig],
    images: int,
    seed: int,
    calls_per_image: int,
) -> list[CostReport]:
    """Write the cost of `ann` and of every spiking network run in each of `modes` to `path`, and print the table.

    Measured on copies in float64, like the gap, so that rounding adds neither spikes nor settling steps.
    images: on the ANN's DDIM path, each at `COST_TIMES` times. calls_per_image: network calls for one generated image.
    Returns the reports, the ANN's first.
    """
    ann = copy.deepcopy(ann).double()
    x, t, *classes = sampler_states(ann, images, COST_TIMES, seed)
    y = classes[0] if classes else None
    reports = [count_operations(ann, x, t, y=y)]
    for name, snn in snn_by_name.items():
        snn = copy.deepcopy(snn).double()
        reports += [dataclasses.replace(count_operations(snn, x, t, mode, y=y), name=name) for mode in modes]
    _write_and_print(path, reports, "ANN", images, calls_per_image, decoder_cost(ann))
    return reports


def decoder_cost(net: Network) -> CostReport | None:
    """What decoding one image takes, of a network on latents: an ANN's work, once an image and not once a call."""
    if net.autoencoder is None:
        return None
    decoder = copy.deepcopy(net.autoencoder.decoder).cpu()
    latents = torch.randn(1, *network_shape(net), generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(count_calls(decoder, [(latents,)]), name="decoder")


def measure_direct(path: Path, net: DirectDenoiser, images: int, seed: int, calls_per_image: int) -> CostReport:
    """Write the cost of a directly trained network to `path`, and print the table.

    Measured like the others, on the network's own DDIM path; there is no ANN beside it. Returns the report.
    """
    net = copy.deepcopy(net).double().eval()
    x, t, *_ = sampler_states(net, images, COST_TIMES, seed)
    report = count_operations(net, x, t, batch_size=2)
    _write_and_print(path, [report], "network", images, calls_per_image)
    return report


def _write_and_print(
    path: Path,
    reports: list[CostReport],
    whose: str,
    images: int,
    calls_per_image: int,
    decoder: CostReport | None = None,
) -> None:
    """whose: the network on whose sampling path the operations were counted. decoder: of an image's latent."""
    content = {
        "images": images,
        "times": COST_TIMES,
        "dtype": "float64",
        "inputs": f"states of the {whose}'s DDIM path",
        "calls_per_image": calls_per_image,
        "prices": price_lists(),
        "reports": [entry(report, calls_per_image) for report in reports],
    } | ({} if decoder is None else {"decoder": decoder.to_dict()})
    write_text(path, json.dumps(content, indent=1) + "\n")
    print_costs(content, whose)


def price_lists() -> list[dict]:
    """What the energies of a cost file are made with."""
    return [dataclasses.asdict(prices) for prices in (FP32, INT8, INT8_STATE16)]


def entry(report: CostReport, calls: int) -> dict:
    """A report for the file: per image and network call, and the energy of a generated image."""
    plain = report.to_dict()
    generated = {
        way: {prices: {part: calls * value for part, value in found.items()} for prices, found in by_prices.items()}
        for way, by_prices in plain["energy"].items()
    }
    return plain | {"energy_per_generated_image": generated}


def print_costs(content: dict, whose: str) -> None:
    """The totals per network call and the energy of a generated image, as the report page shows them."""
    costs = parse_costs(content, COST_FILE, notes=[])
    assert costs is not None  # it has reports
    for header, rows, _ in (cost_table(costs), generation_table(costs)):
        print(text_table(header, rows))
    images, times = counted(costs.images, "image"), counted(costs.times, "diffusion time")
    print(
        f"cost: above per image and network call, on {images} at {times} of the {whose}'s own sampling path; "
        f"below per generated image, {counted(costs.calls, 'call')}; energies of 45 nm CMOS, see docs/cost.md"
    )
