"""Which sampler suits a quantized ANN and its spiking network: score against network calls, for one checkpoint.

    python -m benchmarks.samplers --checkpoint logs/RUN/ckpt.pt --stats stats/REFERENCE.npz --lite0_size 96 \\
        --steps 5,10,20,50 --stream_steps 5,10,20 --images 128 --out docs/figures

The score is the Fréchet distance on EfficientNet-Lite0 features; it is not the FID. Each row is the same images 0, 1, …
of one seed, so rows differ by sampler, calls and network alone. NFE, network calls an image, is counted, not assumed.
`layer_sync` computes what the ANN computes: a few images of every sampler are compared instead of scored. Rows are
written to samplers.json in --out one by one and not computed again, so a command that was stopped goes on, and
rows can be added by several commands: table and picture show all rows on file that were made with the same settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ann2snn.arguments import Parser
from ann2snn.checkpoints import checkpoint, shipped
from ann2snn.config import SampleConfig, SpikingConfig, require
from ann2snn.convert import SpikingNetwork, convert
from ann2snn.data import ImageDataset, load_dataset, to_model_range
from ann2snn.diffusion import analytic_statistics
from ann2snn.diffusion.process import check_sampling, make_process, require_vp, size_of
from ann2snn.diffusion.samplers.grids import REAL_TIMES, whole_times
from ann2snn.distributed import launch
from ann2snn.distributed.runtime import prepare_folder, seed_from
from ann2snn.errors import UserError
from ann2snn.files.atomic import file_hash, write_text
from ann2snn.files.plain import read_text
from ann2snn.generate.sampling import Given, Hooks, generate
from ann2snn.metrics.extractors import make_extractor
from ann2snn.metrics.features import FeatureExtractor
from ann2snn.metrics.score import score_numbered
from ann2snn.metrics.stats_file import ReferenceStatistics, read_stats
from ann2snn.run.tables import text_table
from ann2snn.stages.evaluate import settings
from benchmarks.sampler_figure import draw
from benchmarks.settling import environment

SAMPLERS: dict[str, dict[str, object]] = {  # fields of SampleConfig
    "ddpm_strided": {"sampler": "ddpm_strided"},
    "ddim_eta1": {"sampler": "ddim", "eta": 1.0},
    "analytic_dpm": {"sampler": "analytic_dpm"},
    "dpmpp_sde2": {"sampler": "dpmpp_sde", "order": 2},
    "ddim_eta0": {"sampler": "ddim"},
    "dpm_solver2": {"sampler": "dpm_solver", "order": 2},
    "dpm_solver3": {"sampler": "dpm_solver", "order": 3},
    "dpmpp2": {"sampler": "dpmpp", "order": 2},
    "dpmpp3": {"sampler": "dpmpp", "order": 3},
    "gddim2": {"sampler": "gddim", "order": 2},
    "dpmpp_singlestep2": {"sampler": "dpmpp_singlestep", "order": 2},
    "pndm": {"sampler": "pndm"},
}
SOLVERS = (
    "dpm_solver",
    "dpmpp",
    "dpmpp_sde",
    "dpmpp_singlestep",
)  # they choose real times, the others of this list whole ones
STOCHASTIC = ("ddpm_strided", "ddim_eta1", "analytic_dpm", "dpmpp_sde2")
NETWORKS = ("ann", "layer_sync", "stream")
COMPARED = 4  # images of `layer_sync` that are compared with the ANN's
MOST_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class Task:
    """One row to be: a network, set to run as named, under one sampler with `sample.steps` calls."""

    network: str
    sampler: str
    sample: SampleConfig
    source: checkpoint.Loaded


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What scores are made with. dataset: loads the training images that analytic_dpm needs, when it needs them."""

    images: int
    batch_size: int
    analytic_images: int
    extractor: FeatureExtractor
    stats: ReferenceStatistics
    reference: dict[str, object]
    dataset: Callable[[], ImageDataset]


def networks(source: checkpoint.Loaded, names: tuple[str, ...]) -> dict[str, checkpoint.Loaded]:
    """The quantized ANN of `source` in every way of running it. Raises UserError: it is an SNN, or not quantized."""
    net = source.net.eval()
    require(not isinstance(net, SpikingNetwork), f"{source.path} is a spiking network: give its ANN's ckpt.pt")
    require_vp(net.diffusion, "a comparison of samplers")
    ways = {"ann": net} | {n: convert(net, SpikingConfig(n)) for n in names if n != "ann"}
    return {name: dataclasses.replace(source, net=ways[name].eval()) for name in names}


def tasks(
    sources: dict[str, checkpoint.Loaded],
    samplers: tuple[str, ...],
    steps: dict[str, tuple[int, ...]],
    common: dict[str, object],
) -> list[Task]:
    """Every row in the order of computation, the cheap ones first. Raises UserError where a sampler cannot do it."""
    result = []
    for name, source in sources.items():
        net = source.net
        for calls in sorted(steps[name]):
            for sampler in samplers:
                sample = sample_config(sampler, calls, common)
                statistics = torch.ones(net.diffusion.diffusion_steps, dtype=torch.float64)
                check_sampling(net.diffusion, net.image_size, sample, statistics)
                result.append(Task(name, sampler, sample, source))
    return result


def sample_config(sampler: str, steps: int, common: dict[str, object]) -> SampleConfig:
    """`common`: seed, clip, and skip, the spacing of the solvers' times."""
    fields = SAMPLERS[sampler]
    options = {name: value for name, value in common.items() if name != "skip" or fields["sampler"] in SOLVERS}
    return SampleConfig(**fields, **options, steps=steps)


def row_settings(task: Task, scoring: Scoring) -> dict:
    """Everything that decides the score of a row."""
    made_with = settings(task.source, task.sample) | {"images": scoring.images} | scoring.reference
    return made_with | ({"analytic_images": scoring.analytic_images} if task.sampler == "analytic_dpm" else {})


def statistics_of(task: Task, scoring: Scoring) -> Tensor | None:
    """Γ_t of the task's own network at the times it visits, float64 [diffusion_steps]; None for other samplers."""
    if task.sampler != "analytic_dpm":
        return None
    net, data = task.source.net, scoring.dataset()
    images = to_model_range(torch.stack([data[i] for i in range(min(scoring.analytic_images, len(data)))]))
    process = make_process(net.diffusion, size_of(net))
    times = whole_times(process, task.sample.steps, task.sample.skip)
    generator = torch.Generator().manual_seed(seed_from(task.sample.seed, 0))
    batches = images.to(next(net.parameters())).split(scoring.batch_size)
    return analytic_statistics(net, process, batches, times, generator)


def sampled(task: Task, count: int, batch_size: int, statistics: Tensor | None) -> tuple[Tensor, int]:
    """(images 0..count−1, uint8 [count, C, H, W]; network calls an image, counted)."""
    called, parts = [], []
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        on_call = lambda x, t: called.append(len(x))  # noqa: E731
        parts.append(generate(task.source.net, task.sample, indices, Given(statistics), Hooks(on_call)))
    nfe, remainder = divmod(sum(called), count)
    assert remainder == 0, f"{task.sampler}: {sum(called)} calls for {count} images"
    return torch.cat(parts), nfe


def measure(task: Task, scoring: Scoring) -> dict:
    """One row: its settings, the counted NFE, and the score under the extractor's own name for it."""
    start = time.monotonic()
    images, nfe = sampled(task, scoring.images, scoring.batch_size, statistics_of(task, scoring))
    sampling = time.monotonic() - start
    batches = [(range(len(images)), images)]
    scores = score_numbered(batches, scoring.extractor, scoring.stats, splits=1, total=len(images), progress=False)
    row = {"network": task.network, "sampler": task.sampler, "nfe": nfe}
    row |= {"score": scores[scoring.extractor.distance_key], "seconds": round(sampling, 1), "notes": scores["notes"]}
    return row | {"settings": row_settings(task, scoring)}


def compare_layer_sync(task: Task, ann: checkpoint.Loaded, scoring: Scoring) -> dict:
    """One row without a score: how many of the first images of `layer_sync` are the ANN's, pixel by pixel."""
    statistics = statistics_of(task, scoring)
    snn_images, nfe = sampled(task, COMPARED, COMPARED, statistics)
    ann_images, _ = sampled(dataclasses.replace(task, source=ann), COMPARED, COMPARED, statistics)
    equal = int((snn_images == ann_images).flatten(1).all(1).sum())
    row = {"network": task.network, "sampler": task.sampler, "nfe": nfe, "equal": equal, "compared": COMPARED}
    return row | {"settings": row_settings(task, scoring)}


def read_rows(path: Path) -> list[dict]:
    """Rows of an earlier run, none where there is no file. Raises UserError for a file that is something else."""
    if not path.exists():
        return []
    try:
        rows = json.loads(read_text(path, MOST_BYTES))["rows"]
        if all(isinstance(row["settings"], dict) and row["nfe"] > 0 and _outcome(row) for row in rows):
            return [row for row in rows if row["network"] in NETWORKS and row["sampler"] in SAMPLERS]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(f"{path} holds no rows of this comparison: remove it, or choose another --out")


def run(tasks: list[Task], ann: checkpoint.Loaded, scoring: Scoring, path: Path, about: dict) -> list[dict]:
    """All rows of `path`, once those of `tasks` are there; a row with the same settings is not computed again."""
    rows = read_rows(path)
    for task in tasks:
        settings = row_settings(task, scoring)
        if any((row["network"], row["settings"]) == (task.network, settings) for row in rows):
            continue
        row = compare_layer_sync(task, ann, scoring) if task.network == "layer_sync" else measure(task, scoring)
        rows.append(row)
        write_text(path, json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
        print(f"{task.network} {task.sampler} {row['nfe']}: {_outcome(row)}", file=sys.stderr, flush=True)
    return rows


def comparable(rows: list[dict], tasks: list[Task], scoring: Scoring) -> list[dict]:
    """Those of `rows` that a task like one of `tasks`, but for its number of calls, would make with `scoring`."""
    alike = {(task.network, task.sampler): task for task in tasks}
    matching = []
    for row in rows:
        task = alike.get((row["network"], row["sampler"]))
        if task is not None:
            task = dataclasses.replace(task, sample=dataclasses.replace(task.sample, steps=row["nfe"]))
            matching += [row] if row_settings(task, scoring) == row["settings"] else []
    return matching


def _outcome(row: dict) -> str:
    return f"{row['score']:.1f}" if "score" in row else f"{row['equal']}/{row['compared']} equal"


def table(rows: list[dict], network: str) -> str:
    """One line a sampler, one column a counted NFE."""
    network_rows = [row for row in rows if row["network"] == network]
    calls = sorted({row["nfe"] for row in network_rows})
    cells = {(row["sampler"], row["nfe"]): _outcome(row) for row in network_rows}
    names = [name for name in SAMPLERS if any(row["sampler"] == name for row in network_rows)]
    kind = {name: "stochastic" if name in STOCHASTIC else "deterministic" for name in names}
    lines = [[name, kind[name], *(cells.get((name, n)) for n in calls)] for name in names]
    return text_table([network, "sampling", *(f"NFE {n}" for n in calls)], lines)


def _parser() -> Parser:
    parser = Parser("python -m benchmarks.samplers", __doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="quantized ANN: ckpt.pt, folder, shipped")
    parser.add_argument("--stats", type=Path, required=True, help="reference statistics (evaluate.py --make_stats)")
    parser.add_argument("--out", type=Path, required=True, help="folder of samplers.json and samplers.png")
    parser.add_argument("--lite0_size", type=int, default=96, help="side that images are resized to for the features")
    parser.add_argument("--steps", default="5,10,20,50", help="network calls an image")
    parser.add_argument("--stream_steps", help="the same for stream, which is slower; default: --steps")
    parser.add_argument("--images", type=int, default=128, help="images a row")
    parser.add_argument("--networks", default="ann,layer_sync,stream", help=f"of {','.join(NETWORKS)}")
    parser.add_argument("--samplers", default=",".join(SAMPLERS), help=f"of {','.join(SAMPLERS)}")
    parser.add_argument("--skip", default="logsnr", choices=tuple(REAL_TIMES), help="spacing of the solvers' times")
    parser.add_argument("--no_clip", action="store_true", help="do not clip the predicted image inside the chain")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--analytic_images", type=int, default=64, help="training images of analytic_dpm's statistics")
    parser.add_argument("--data_dir", default="./data", help="where the data set is")
    parser.add_argument("--dataset_type", help="analytic_dpm's; default: what the checkpoint was trained on")
    return parser


def _names(text: str, allowed: tuple[str, ...], flag: str) -> tuple[str, ...]:
    """Distinct names in the order of `allowed`."""
    names = set(text.split(","))
    strange = sorted(names - set(allowed))
    require(not strange, f"{flag}={text}: unknown {', '.join(map(repr, strange))}; use {', '.join(allowed)}")
    return tuple(name for name in allowed if name in names)


def _numbers(text: str, flag: str) -> tuple[int, ...]:
    parts = text.split(",")
    require(all(p.isascii() and p.isdigit() and 0 < len(p) < 7 for p in parts), f"{flag}={text}: use 5,10,…")
    return tuple(sorted({int(p) for p in parts}))


def _main(args: argparse.Namespace) -> int:
    for flag, least in (("images", 2), ("batch_size", 1), ("analytic_images", 1)):
        require(getattr(args, flag) >= least, f"--{flag}={getattr(args, flag)}: use at least {least}")
    names = _names(args.networks, NETWORKS, "--networks")
    steps = dict.fromkeys(NETWORKS, _numbers(args.steps, "--steps"))
    if args.stream_steps:
        steps["stream"] = _numbers(args.stream_steps, "--stream_steps")
    steps["layer_sync"] = steps["ann"][:1]
    samplers = _names(args.samplers, tuple(SAMPLERS), "--samplers")
    source = checkpoint.load(shipped.path_of(str(args.checkpoint)))
    common = {"seed": args.seed, "clip": not args.no_clip, "skip": args.skip}
    wanted = tasks(networks(source, names), samplers, steps, common)
    extractor = make_extractor("lite0", resolution=args.lite0_size)
    stats = read_stats(args.stats, extractor.name, extractor.dim)
    reference = {"extractor": extractor.name, "reference": file_hash(args.stats), "reference_count": stats.count}
    dataset = args.dataset_type or source.raw.get("config", {}).get("train", {}).get("dataset_type", "")
    load = functools.cache(lambda: load_dataset(dataset, args.data_dir, source.net.image_size))
    if "analytic_dpm" in samplers:
        load()  # what is missing must stop it now
    scoring = Scoring(args.images, args.batch_size, args.analytic_images, extractor, stats, reference, load)
    path = prepare_folder(args.out) / "samplers.json"
    rows = run(wanted, source, scoring, path, {"score": extractor.distance_key} | environment())
    rows = comparable(rows, wanted, scoring)
    for name in names:
        print(table(rows, name), end="\n\n")
    for note in sorted({note for row in rows for note in row.get("notes", ())}):
        print(f"note: {note}")
    scored = [row for row in rows if "score" in row]
    if scored:
        draw(scored, STOCHASTIC, f"{extractor.distance_key} ({args.images} images)", path.with_suffix(".png"))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 after one line on stderr for bad input."""
    return launch.run(lambda: _main(_parser().parse_args(argv)), lambda: 1)


if __name__ == "__main__":
    sys.exit(main())
