"""Diffusion of points or tiny pictures: python -m ann2snn.toy @config/toy/vp.txt --out logs/toy_vp

Trains a small network on the CPU within a minute or two, samples with every sampler asked for, and writes to --out:
points.png (the data beside the samples), results.jsonl (one line for each sampler and number of network calls) and
toy.pt (the network).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..arguments import Parser, exit_code_of, need
from ..config import CORRECTORS, IMAGE_SAMPLERS, PROCESSES, SDE_SAMPLERS, require
from .settings import IMAGES, NAMES, ToySettings

ALL = "all"


def parser() -> Parser:
    """The command line; destinations are the fields of `ToySettings`, and out, network, num_threads."""
    default = ToySettings
    made = Parser("python -m ann2snn.toy", __doc__, files=True)
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
    help_text = "cld, blur: the network learns what a linear prediction leaves (default on)"
    add("--linear_first", action=argparse.BooleanOptionalAction, help=help_text)
    add("--network", type=Path, help="sample with this toy.pt instead of training")
    add("--num_threads", type=int, default=0, help="CPU threads; 0 leaves the choice to torch")
    return made


def settings_from(arguments: list[str]) -> tuple[ToySettings, argparse.Namespace]:
    """Raises UserError for whatever is wrong with them."""
    given = parser().read(arguments)
    require(0 <= given.num_threads <= 1024, f"--num_threads={given.num_threads}: use 0 to 1024")
    values = {name: value for name, value in vars(given).items() if value is not None}
    values.setdefault("points", "squares" if given.process == "blur" else "gaussian8")
    values.setdefault("sampler", (PROCESSES[given.process].cls.default_sampler,))
    if ALL in values["sampler"]:
        values["sampler"] = (*IMAGE_SAMPLERS, *SDE_SAMPLERS) if PROCESSES[given.process].whole_steps else SDE_SAMPLERS
    known = {field.name for field in fields(ToySettings)}
    plain: dict[str, Any] = {
        name: tuple(v) if isinstance(v, (list, tuple)) else v for name, v in values.items() if name in known
    }
    return ToySettings(**plain), given


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 for bad input, with one line on the standard error stream."""
    return exit_code_of(lambda: _main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> None:
    settings, given = settings_from(arguments)
    need("matplotlib", "report")
    import torch

    from .run import run

    if given.num_threads:
        torch.set_num_threads(given.num_threads)
    run(settings, given.out, given.network)


if __name__ == "__main__":
    sys.exit(main())
