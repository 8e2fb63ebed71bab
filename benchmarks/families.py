"""Conversion against direct training: four families at one size, one number of steps, one sampler and one account.

    python -m benchmarks.families --out logs/families
    python -m benchmarks.families --out logs/families32 --dataset_type fashion_mnist --data_dir data --image_size 32 \\
        --ch_mult 1,2,4 --parameters 600000 --steps 2000 --fad_encoder fashion_64.pth --fad_stats fashion_test_64.npz

Trains a quantized U-Net and converts it, an SDDPM, an SDM (the first nine tenths of its steps are the SDDPM's, the
last tenth is TSM fine-tuning) and an FSDDIM, through the scripts a user runs; generates and scores images; prints
the table and writes families.json to --out. Each family's width is the one whose parameter count comes nearest to
--parameters; batch size, learning rate and steps are equal, so training times are not: a step of a spiking network
runs its layers once per time step. A command that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ann2snn.config import UNetConfig, require
from ann2snn.distributed.runtime import prepare_folder
from ann2snn.errors import UserError
from ann2snn.files.atomic import write_text
from ann2snn.nets.architecture import NetworkConfig, build_network
from ann2snn.nets.fsddim import FSDDIMConfig
from ann2snn.nets.sddpm import SDDPMConfig
from ann2snn.run.folder import RESULTS
from ann2snn.run.lines import read_log
from ann2snn.run.tables import text_table
from benchmarks.settling import environment

ROOT = Path(__file__).parents[1]
TSM_SHARE = 10  # one step in so many of SDM's is fine-tuning
HEADER = [
    "network", "parameters", "steps", "training s", "FD", "FAD eval", "FAD published", "spikes", "rate", "AC", "MAC",
    "time steps", "fp32 µJ", "+memory µJ", "int8 µJ", "+memory µJ",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A way to run a network: its folder, flags of evaluate.py, the label of its entry in cost.json."""

    name: str
    folder: str
    checkpoint: str
    flags: tuple[str, ...]
    label: str
    trained: tuple[str, ...]  # stages whose seconds add up to its training


ROWS = (
    Row("quantized ANN", "converted", "ckpt.pt", (), "ANN", ("ann",)),
    Row("converted, layer_sync", "converted", "converted_snn.pt", (), "converted layer_sync", ("ann",)),
    Row("converted, stream", "converted", "converted_snn.pt", ("--schedule=stream",), "converted stream", ("ann",)),
    Row("SDDPM", "sddpm", "trained_snn.pt", (), "SDDPM", ("sddpm", "sddpm_rest")),
    Row("SDM", "sddpm/SDM_{S}T", "trained_snn.pt", (), "SDM", ("sddpm", "sdm")),
    Row("FSDDIM", "fsddim", "trained_snn.pt", ("--sampler=fsddim",), "FSDDIM", ("fsddim",)),
    Row("FSDDIM, eta 1", "fsddim", "trained_snn.pt", ("--eta=1",), "FSDDIM", ("fsddim",)),
)


def nearest_width(make: Callable[[int], NetworkConfig], parameters: int, widths: range) -> tuple[NetworkConfig, int]:
    """The network of `make(ch)` whose number of parameters is nearest to the one wanted, and that number."""

    def size(config: NetworkConfig) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in build_network(config).parameters() if p.requires_grad)

    sizes = [(config, size(config)) for config in map(make, widths)]
    return min(sizes, key=lambda pair: abs(pair[1] - parameters))


def networks(args: argparse.Namespace) -> dict[str, tuple[NetworkConfig, int]]:
    """Family → its network and how many parameters it has."""
    common = {"in_channels": args.channels, "image_size": args.image_size}
    common |= {"ch_mult": args.ch_mult, "num_res_blocks": 1, "dropout": 0.0}
    spiking = common | {"spike_steps": args.spike_steps}
    makers = {
        "converted": lambda ch: UNetConfig(ch=ch, bits=args.bits, norm_groups=ch // 2, **common),
        "sddpm": lambda ch: SDDPMConfig(ch=ch, corrections=args.corrections, **spiking),
        "fsddim": lambda ch: FSDDIMConfig(ch=ch, **spiking),
    }
    return {name: nearest_width(make, args.parameters, range(8, 129, 2)) for name, make in makers.items()}


class Stages:
    """Runs the scripts, once each, and remembers their seconds in `families.json` in the folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, prepare_folder(args.out)
        self.path = self.out / "families.json"
        self.settings = {name: str(value) for name, value in sorted(vars(args).items()) if name != "out"}
        stored = json.loads(self.path.read_text()) if self.path.exists() else {}
        require(
            stored.get("settings", self.settings) == self.settings,
            f"{self.path} was made with other settings: choose another --out",
        )
        self.seconds: dict[str, float] = stored.get("seconds", {})

    def run(self, stage: str, script: str, *flags: str) -> None:
        """Run a script unless it was run before. Raises UserError if it fails."""
        if stage in self.seconds:
            return
        command = [sys.executable, str(ROOT / script), *flags, f"--num_threads={self.args.num_threads}"]
        print(f"{stage}: {script} {' '.join(flags)}", flush=True)
        start = time.monotonic()
        code = subprocess.run(command, cwd=Path.cwd(), check=False).returncode
        if code:
            raise UserError(f"{script} ended with code {code}; run the same command to continue")
        self.seconds[stage] = round(time.monotonic() - start, 1)
        self.write()

    def write(self, **more: object) -> None:
        content = {"settings": self.settings, "seconds": self.seconds, **more}
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def train_all(stages: Stages, families: dict[str, tuple[NetworkConfig, int]]) -> None:
    """Every family to --steps optimizer steps. The learning rate is constant, so that a run can be continued."""
    args, out = stages.args, stages.out
    first = args.steps - args.steps // TSM_SHARE
    data = [f"--dataset_type={args.dataset_type}", f"--data_dir={args.data_dir}", f"--img_size={args.image_size}"]
    common = [*data, f"--seed={args.seed}", "--sample_step=0", "--save_step=500", "--log_step=20"]
    common += [f"--lr={args.lr}", "--ema_decay=0.99", "--ema_warmup", f"--gen_images={min(64, args.num_images)}"]
    common += ["--gap_images=2", "--sampler=ddim", f"--sampler_steps={args.sampler_steps}", "--eta=1"]
    training = [*common, "--train", "--warmup=100", f"--batch_size={args.batch_size}", "--dropout=0"]

    def shape(family: str) -> list[str]:
        config = families[family][0]
        mult = [f"--ch_mult={m}" for m in config.ch_mult]
        return [f"--arch={config.arch}", f"--ch={config.ch}", *mult, "--num_res_blocks=1"]

    quantized = [*shape("converted"), f"--bit={args.bits}", f"--norm_groups={families['converted'][0].norm_groups}"]
    folder = f"--logdir={out / 'converted'}"
    stages.run("ann", "ANN_train.py", *training, *quantized, f"--total_steps={args.steps}", folder)
    stages.run("conversion", "SNN_conversion.py", *common, "--eval", folder)

    corrections = [f"--corrections={','.join(args.corrections)}"] if args.corrections else []
    spiking = [f"--timestep={args.spike_steps}"]
    folder = f"--logdir={out / 'sddpm'}"
    sddpm = [*training, *shape("sddpm"), *spiking, *corrections, folder]
    stages.run("sddpm", "SNN_train.py", *sddpm, f"--total_steps={first}")
    tuning = ["--fine_tune", "--ft_method=tsm", f"--ft_batch_size={args.batch_size}"]
    stages.run("sdm", "SNN_ft.py", *common, *tuning, f"--ft_steps={args.steps - first}", "--warmup=0", folder)
    stages.run("sddpm_rest", "SNN_train.py", *sddpm, f"--total_steps={args.steps}")

    currents = ["--mean_type=v", "--beta_schedule=cosine", "--loss_type=scl", f"--logdir={out / 'fsddim'}"]
    fsddim = [*training, *shape("fsddim"), *spiking, *currents]
    stages.run("fsddim", "SNN_train.py", *fsddim, f"--total_steps={args.steps}")


def score_all(stages: Stages) -> None:
    """The images of every row, and their scores in its folder's `snn_eval.txt`."""
    args, out = stages.args, stages.out
    features = ["--extractor=lite0", f"--lite0_size={args.lite0_size}", f"--fid_cache={out / 'stats.npz'}"]
    data = [f"--dataset_type={args.dataset_type}", f"--data_dir={args.data_dir}", f"--img_size={args.image_size}"]
    stages.run("stats", "evaluate.py", "--make_stats", *data, *features, "--num_images=2000")
    fads = {"": []}
    if args.fad_encoder:
        encoder = [f"--fad_encoder={args.fad_encoder}", "--extractor=none"]
        eval_flags = [*encoder, "--fad_mode=eval", f"--fad_stats={out / 'fad_eval.npz'}"]
        stages.run("fad_stats", "evaluate.py", "--make_stats", *data, *eval_flags, "--num_images=10000")
        fads |= {" FAD eval": eval_flags}
        if args.fad_stats:
            fads |= {" FAD published": [*encoder, "--fad_mode=published", f"--fad_stats={args.fad_stats}"]}
    for row in ROWS:
        folder = out / row.folder.format(S=args.spike_steps)
        common = ["--eval", f"--logdir={folder}", f"--eval_model_path={folder / row.checkpoint}"]
        common += [f"--num_images={args.num_images}", "--batch_size=32", f"--seed={args.seed}"]
        eta = [] if "--eta=1" in row.flags or row.folder == "fsddim" else ["--eta=1"]
        sampling = ["--sampler=ddim", f"--sampler_steps={args.sampler_steps}", *eta, *row.flags]
        for suffix, flags in fads.items():
            stages.run(f"{row.name}{suffix}", "evaluate.py", *common, *sampling, *features, *flags)


def collect(stages: Stages, families: dict[str, tuple[NetworkConfig, int]]) -> list[dict]:
    """One dictionary a row, by the names of HEADER; None where nothing was measured."""
    args, out, rows = stages.args, stages.out, []
    for row in ROWS:
        folder = out / row.folder.format(S=args.spike_steps)
        cost = json.loads((folder / "cost.json").read_text())
        report = next(r for r in cost["reports"] if r["label"].startswith(row.label))
        way = "quantized" if row.label == "ANN" else "counted"
        energy, totals = report["energy"][way], report["totals"]
        scores = scores_of(folder, row, args)
        parts = {"fp32": "fp32 µJ", "int8": "int8 µJ"}
        rows.append(
            {
                "network": row.name,
                "parameters": families[row.folder.split("/")[0]][1],
                "steps": args.steps,
                "training s": sum(stages.seconds[stage] for stage in row.trained),
                **scores,
                "spikes": totals["spikes"] if report["spike_steps"] else None,
                "rate": totals["firing_rate"] if report["spike_steps"] else None,
                "AC": totals["ac"],
                "MAC": totals["mac"],
                "time steps": report["latency_steps"],
                "energy": {
                    parts[p]: [energy[p]["compute_pj"] / 1e6, energy[p]["total_pj"] / 1e6] for p in ("fp32", "int8")
                },
            }
        )
    return rows


def scores_of(folder: Path, row: Row, args: argparse.Namespace) -> dict[str, float | None]:
    """FD and the two FADs that evaluate.py wrote for this row."""
    scores: dict[str, float | None] = {"FD": None, "FAD eval": None, "FAD published": None}
    schedule = "stream" if "--schedule=stream" in row.flags else "layer_sync"
    for line in read_log(folder / RESULTS):
        spiking = line.get("spiking")
        is_row = (spiking is not None) == row.name.startswith("converted") and line.get("count") == args.num_images
        if spiking is not None:
            is_row = is_row and spiking["schedule"] == schedule
        if row.folder == "fsddim":
            is_row = is_row and (line["sampler"] == "fsddim") == ("--sampler=fsddim" in row.flags)
        if not is_row:
            continue
        for name, value in line.items():
            if name.startswith("FD_"):
                scores["FD"] = value
            elif name.startswith("FAD"):
                scores["FAD published" if "published" in name else "FAD eval"] = value
    return scores


def table(rows: list[dict]) -> str:
    """The rows for a terminal."""
    lines = []
    for row in rows:
        energies = [f"{value:.3g}" for pair in row["energy"].values() for value in pair]
        cells = {name: _cell(row[name]) for name in HEADER if name in row}
        lines.append([*cells.values(), *energies])
    return text_table(HEADER, lines)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the runs and of families.json")
    parser.add_argument("--dataset_type", default="fashion_mnist_10k", help="as of the scripts")
    parser.add_argument("--data_dir", default="./data")
    parser.add_argument("--channels", type=int, default=1, help="of its images")
    parser.add_argument("--image_size", type=int, default=16)
    parser.add_argument("--ch_mult", default="1,2", help="multipliers of the levels' channels")
    parser.add_argument("--parameters", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of every family")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--bits", type=int, default=2, help="of the quantized ANN; it converts to 2^bits − 1 steps")
    parser.add_argument("--spike_steps", type=int, default=4, help="of the directly trained networks")
    parser.add_argument("--corrections", default="init", help="of SDDPM, see SNN_train.py; empty for none")
    parser.add_argument("--sampler_steps", type=int, default=20)
    parser.add_argument("--num_images", type=int, default=200, help="generated and scored a row")
    parser.add_argument("--lite0_size", type=int, default=96)
    parser.add_argument("--fad_encoder", help="adds the FAD: the autoencoder's file")
    parser.add_argument("--fad_stats", help="the published statistics, for the FAD's published recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_threads", type=int, default=1)
    args = parser.parse_args(argv)
    args.ch_mult = tuple(int(m) for m in args.ch_mult.split(","))
    args.corrections = tuple(name for name in args.corrections.split(",") if name)
    return args


def main(argv: list[str] | None = None) -> int:
    try:
        args = parse(argv)
        families = networks(args)
        stages = Stages(args)
        for family, (config, size) in families.items():
            print(f"{family}: --ch={config.ch}, {size:,} parameters")
        train_all(stages, families)
        score_all(stages)
        rows = collect(stages, families)
        about = environment()
        stages.write(rows=rows, environment=about)
    except (UserError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    print(
        f"{args.dataset_type} at {args.image_size} px; per image and network call; FD: lite0 features at "
        f"{args.lite0_size} px, {args.num_images} images, {args.sampler_steps} calls an image, seed {args.seed}; "
        + ", ".join(f"{name} {value}" for name, value in about.items())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
