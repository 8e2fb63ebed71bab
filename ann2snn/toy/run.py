"""A whole toy run: training, samples of every sampler, a picture and a table."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..checkpoints import checkpoint
from ..distributed.runtime import prepare_folder
from ..errors import UserError
from ..files.atomic import replacing, sweep, write_text
from ..files.plain import read_text
from .draw import picture
from .learn import KIND, load, save, train
from .sample import Result, fresh, sample
from .sets import distance, draw, sliced_wasserstein
from .settings import ToySettings

PICTURE, RESULTS, NETWORK = "points.png", "results.jsonl", "toy.pt"
LARGEST = 1 << 24  # bytes of a file of results


def run(settings: ToySettings, out: Path, network: Path | None = None) -> list[Result]:
    """Train, or read `network`, then sample; writes the three files and prints a table. Raises UserError."""
    try:
        sweep(prepare_folder(out), depth=0)
    except UserError as error:
        raise UserError(str(error).replace("--logdir", "--out")) from None
    check_target(out, settings)
    start = time.perf_counter()
    if network is None:
        with tqdm(total=settings.train_steps, desc="training", leave=False, disable=None) as bar:
            net, loss = train(settings, lambda step, loss: bar.update())
        save(out / NETWORK, net, settings, loss)
    else:
        net, loss = load(network, settings)
    seconds = time.perf_counter() - start
    data = fresh(settings)
    fresh_data = draw(settings.points, settings.samples, settings.seed)
    floor: dict[str, object] = {"sampler": "data", "distance": distance(settings.points, data)}
    floor["sliced_wasserstein"] = sliced_wasserstein(data, fresh_data)
    results = [sample(net, settings, chosen) for chosen in settings.runs()]
    head: dict[str, object] = {"settings": settings.to_dict(), "loss": loss if math.isfinite(loss) else None}
    head["train_seconds"] = round(seconds, 1) if network is None else None
    lines: list[dict[str, Any]] = [head, floor, *(result.to_dict() for result in results)]
    write_text(out / RESULTS, "".join(json.dumps(line) + "\n" for line in lines))
    with replacing(out / PICTURE) as temporary:
        temporary.write_bytes(picture(data, results))
    print("\n".join(table(settings, loss, seconds, lines[1:])))
    print(out / PICTURE)
    return results


def check_target(out: Path, settings: ToySettings) -> None:
    """Raise UserError if the folder has a file of the run's names that this very run would not make."""
    there = [name for name in (RESULTS, NETWORK, PICTURE) if os.path.lexists(out / name)]
    if not there:
        return
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError, KeyError):  # UserError among them
        if there[0] == RESULTS:
            head = json.loads(read_text(out / RESULTS, LARGEST).partition("\n")[0])
            made_with = head["settings"]
        else:
            made_with = checkpoint.read(out / NETWORK)["config"][KIND]
        if made_with == settings.to_dict():
            return
    raise UserError(f"{out / there[0]} is not of a run with these settings: choose another --out, or remove it")


def table(settings: ToySettings, loss: float, seconds: float, lines: list[dict]) -> list[str]:
    """What is printed: a line for the data, which say what is reached at best, and one for each result."""
    text_lines = [f"{settings.process}, {settings.points}: loss {loss:.4f}, {seconds:.0f} s before sampling"]
    text_lines.append(f"{'sampler':<14}{'calls':>6}{'distance':>12}{'sliced W2':>12}{'seconds':>10}")
    for line in lines:
        cells = [_shown(line["distance"]), _shown(line["sliced_wasserstein"])]
        calls, spent = str(line.get("nfe", "")), f"{line['seconds']:.2f}" if "seconds" in line else ""
        text_lines.append(f"{line['sampler']:<14}{calls:>6}{cells[0]:>12}{cells[1]:>12}{spent:>10}")
    return text_lines


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
