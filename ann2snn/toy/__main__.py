"""Diffusion of points or tiny pictures: python -m ann2snn.toy @config/toy/vp.txt --out logs/toy_vp

Trains a small network on the CPU within a minute or two, samples with every sampler asked for, and writes to --out:
points.png (the data beside the samples), results.jsonl (one line for each sampler and number of network calls) and
toy.pt (the network).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from ..config import PROCESSES, SDE_SAMPLERS, require
from ..diffusion.gddim_coefficients import CORRECTORS
from ..diffusion.samplers import IMAGE_SAMPLERS
from ..distributed.runtime import prepare_folder
from ..errors import UserError, one_line
from ..files.atomic import replacing, sweep, write_text
from ..files.plain import read_text
from ..output import unbreakable_output
from .draw import picture
from .learn import load, save, train
from .sample import Result, fresh, sample
from .sets import IMAGES, NAMES, distance, draw, sliced_wasserstein
from .settings import ToySettings

PICTURE, RESULTS, NETWORK = "points.png", "results.jsonl", "toy.pt"
ALL = "all"
LONGEST_FILE = 1 << 20  # bytes of a file of arguments


class _Parser(argparse.ArgumentParser):
    """Reads @FILE with several arguments a line and # comments; raises UserError where argparse would exit."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return arg_line.partition("#")[0].split()

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parser() -> argparse.ArgumentParser:
    """The command line; destinations are the fields of `ToySettings`, and out, network, num_threads."""
    default = ToySettings()
    made = _Parser(
        prog="python -m ann2snn.toy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fromfile_prefix_chars="@",
        allow_abbrev=False,
        epilog="@FILE reads arguments from a file; later ones win.",
    )
    add = made.add_argument
    add("--out", type=Path, required=True, help="folder of the results")
    add("--process", choices=PROCESSES, default="vp", help="diffusion process (default vp)")
    add("--points", choices=NAMES, help=f"data; blur: {', '.join(IMAGES)} (default gaussian8, blur: squares)")
    samplers = (*IMAGE_SAMPLERS, *SDE_SAMPLERS)
    add("--sampler", nargs="+", choices=(*samplers, ALL), help="one or more (default ddim, cld and blur: gddim)")
    add("--steps", "--sampler_steps", nargs="+", type=int, default=default.steps, help="numbers of network calls")
    add("--order", "--sampler_order", type=int, help="of dpm_solver, dpmpp and gddim (default 2)")
    add("--corrector", choices=CORRECTORS, help="of gddim (default none)")
    add("--lam", "--eta", type=float, help="noise: eta of ddim, λ of gddim and euler (default 0)")
    add("--T", type=int, help=f"diffusion steps of vp (default {default.T})")
    add("--beta_1", type=float, help=f"first beta of vp (default {default.beta_1})")
    add("--beta_T", type=float, help=f"last beta of vp (default {default.beta_T})")
    for name in ("train_steps", "batch_size", "width", "layers", "waves", "samples", "seed"):
        add(f"--{name}", type=int, help=f"(default {getattr(default, name)})")
    add("--lr", type=float, help=f"learning rate (default {default.lr})")
    add("--time_power", type=float, help="cld, blur: train on times u^time_power, u uniform (default 1)")
    told = "cld, blur: the network learns what a linear prediction leaves (default on)"
    add("--linear_first", action=argparse.BooleanOptionalAction, help=told)
    add("--network", type=Path, help="sample with this toy.pt instead of training")
    add("--num_threads", type=int, default=0, help="CPU threads; 0 leaves the choice to torch")
    return made


def settings_from(arguments: list[str]) -> tuple[ToySettings, argparse.Namespace]:
    """Raises UserError for whatever is wrong with them."""
    for argument in arguments:
        if argument.startswith("@"):
            try:
                read_text(argument[1:], LONGEST_FILE)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
                raise UserError(f"cannot read {argument[1:]}: {reason}") from None
    try:
        given = parser().parse_args(arguments)
    except (RecursionError, UnicodeDecodeError):
        raise UserError("a file of arguments names itself, or one that is no text: correct its @ lines") from None
    require(0 <= given.num_threads <= 1024, f"--num_threads={given.num_threads}: use 0 to 1024")
    values = {name: value for name, value in vars(given).items() if value is not None}
    values.setdefault("points", "squares" if given.process == "blur" else "gaussian8")
    values.setdefault("sampler", ("ddim",) if given.process == "vp" else ("gddim",))
    if ALL in values["sampler"]:
        values["sampler"] = (*IMAGE_SAMPLERS, *SDE_SAMPLERS) if given.process == "vp" else SDE_SAMPLERS
    known = {field.name for field in fields(ToySettings)}
    plain: dict[str, Any] = {
        name: tuple(v) if isinstance(v, (list, tuple)) else v for name, v in values.items() if name in known
    }
    return ToySettings(**plain), given


def run(settings: ToySettings, out: Path, network: Path | None = None) -> list[Result]:
    """Train, or read `network`, then sample; writes the three files and prints a table. Raises UserError."""
    try:
        sweep(prepare_folder(out), depth=0)
    except UserError as error:
        raise UserError(str(error).replace("--logdir", "--out")) from None
    start = time.perf_counter()
    if network is None:
        with tqdm(total=settings.train_steps, desc="training", leave=False, disable=None) as bar:
            net, loss = train(settings, lambda step, loss: bar.update())
        save(out / NETWORK, net, settings, loss)
    else:
        net, loss = load(network, settings)
    seconds = time.perf_counter() - start
    data = fresh(settings)
    other = draw(settings.points, settings.samples, settings.seed)
    floor: dict[str, object] = {"sampler": "data", "distance": distance(settings.points, data)}
    floor["sliced_wasserstein"] = sliced_wasserstein(data, other)
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


def table(settings: ToySettings, loss: float, seconds: float, lines: list[dict]) -> list[str]:
    """What is printed: a line for the data, which say what is reached at best, and one for each result."""
    told = [f"{settings.process}, {settings.points}: loss {loss:.4f}, {seconds:.0f} s before sampling"]
    told.append(f"{'sampler':<14}{'calls':>6}{'distance':>12}{'sliced W2':>12}{'seconds':>10}")
    for line in lines:
        cells = [_shown(line["distance"]), _shown(line["sliced_wasserstein"])]
        calls, spent = str(line.get("nfe", "")), f"{line['seconds']:.2f}" if "seconds" in line else ""
        told.append(f"{line['sampler']:<14}{calls:>6}{cells[0]:>12}{cells[1]:>12}{spent:>10}")
    return told


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 for bad input, with one line on the standard error stream."""
    with unbreakable_output():
        try:
            settings, given = settings_from(sys.argv[1:] if arguments is None else arguments)
            if given.num_threads:
                torch.set_num_threads(given.num_threads)
            run(settings, given.out, given.network)
        except UserError as error:
            print(f"error: {one_line(str(error))}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
