"""A few minutes of CIFAR-10 training on a GPU, and what came of it: samples, a score, and weights small enough to keep.

    python -m benchmarks.gpu_training --out logs/gpu_training --data ./data --minutes 5
    python -m benchmarks.gpu_training --out logs/gpu_training --device cpu --tiny --minutes 0.2

Trains in bfloat16, compiled, with batches of 512, and is ended by SIGTERM, which saves the state that is reached. Then
it converts, samples with levels carried, scores where EfficientNet-Lite0's packages are installed, and writes
OUT/network/, half-precision weights of at most 16 MB. Figures go to OUT/training.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import ann2snn

NETWORK = ["--img_size=32", "--ch=64", "--ch_mult=1", "--ch_mult=2", "--ch_mult=2", "--bit=4", "--spike_driven"]
NETWORK += ["--num_res_blocks=2", "--norm_groups=8", "--mean_type=v", "--dropout=0"]
TINY = ["--img_size=8", "--ch=8", "--ch_mult=1", "--ch_mult=2", "--bit=2", "--num_res_blocks=1", "--norm_groups=4"]
TINY += ["--dropout=0"]
MOST_BYTES = 16 * 2**20
SAMPLING = ["--sampler=ddim", "--sampler_steps=50", "--eta=0"]


def train(folder: Path, flags: list[str], minutes: float) -> dict[str, object]:
    """A training that is told to stop after so many minutes from its first step on."""
    begun = time.monotonic()
    running = subprocess.Popen([sys.executable, "ANN_train.py", "--train", f"--logdir={folder}", *flags])
    log = folder / "log.jsonl"
    while running.poll() is None and not log.exists():
        time.sleep(0.2)
    first = time.monotonic()
    while running.poll() is None and time.monotonic() - first < 60 * minutes:
        time.sleep(0.2)
    if running.poll() is None:
        running.send_signal(signal.SIGTERM)
    code = running.wait()
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    losses = [line for line in lines if "loss" in line]
    steps = losses[-1]["step"] + 1 if losses else 0
    return {
        "exit_code": code,
        "seconds_to_the_first_step": first - begun,
        "seconds": time.monotonic() - first,
        "steps": steps,
        "steps_per_second": steps / (time.monotonic() - first),
        "last_loss": losses[-1]["loss"] if losses else None,
    }


def run(*command: str) -> dict[str, object]:
    begun = time.monotonic()
    completed = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    complaint = (completed.stderr.strip().splitlines() or [""])[-1] if completed.returncode else ""
    return {"exit_code": completed.returncode, "seconds": time.monotonic() - begun, "complaint": complaint}


def score(folder: Path, flags: list[str], images: int) -> dict[str, object]:
    """The line of scores of the images that were sampled, against 2,000 of the data set."""
    lite = ["--extractor=lite0", "--lite0_size=96", f"--fid_cache={folder}/stats.npz", f"--logdir={folder}", *flags]
    statistics = run("evaluate.py", "--noeval", "--make_stats", "--num_images=2000", *lite)
    if statistics["exit_code"]:
        return statistics
    scoring = run("evaluate.py", "--eval", "--carry", f"--num_images={images}", *SAMPLING, *lite)
    results = folder / "snn_eval.txt"
    return json.loads(results.read_text(encoding="utf-8").splitlines()[-1]) if results.exists() else scoring


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--data", default="./data", help="where CIFAR-10 lies")
    parser.add_argument("--dataset", default="cifar10", help="or folder: any images below --data")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--images", type=int, default=64, help="sampled")
    parser.add_argument("--tiny", action="store_true", help="sizes for a try on a CPU, on images that ship")
    args = parser.parse_args(arguments)
    if args.out.exists():
        print(f"error: {args.out} exists: choose another --out", file=sys.stderr)
        return 2
    os.chdir(Path(__file__).resolve().parents[1])
    device, folder = [f"--device={args.device}"], args.out.resolve()
    data = [f"--dataset_type={args.dataset}", f"--data_dir={args.data}"]
    flags = [*NETWORK, *data, "--batch_size=512", "--amp", "--compile", "--resident=on", "--num_workers=8"]
    if args.tiny:
        flags = [*TINY, "--dataset_type=fashion_mnist_10k", "--batch_size=8", "--num_threads=1"]
    flags += [*device, "--total_steps=10000000", "--save_step=0", "--sample_step=0", "--log_step=5", "--warmup=200"]
    flags += ["--lr=0.001", "--ema_decay=0.999", "--ema_warmup"]
    results = {"training": train(folder, flags, args.minutes)}
    common = [f"--logdir={folder}", *device, *SAMPLING]
    results["conversion"] = run("SNN_conversion.py", "--eval", *common, "--gap_images=1", "--gen_images=0")
    sampled = ["--sample_only", "--carry", f"--num_images={args.images}", "--pic_or_not"]
    results["sampling"] = run("evaluate.py", *common, *sampled)
    if importlib.util.find_spec("efficientnet_lite_pytorch"):
        results["score"] = score(folder, [*device, *data] if not args.tiny else device, args.images)
    network = ann2snn.load(folder / "ckpt.pt")
    ann2snn.save(network, folder / "network", dtype="float16", step=results["training"]["steps"])
    size = sum(path.stat().st_size for path in (folder / "network").iterdir())
    results |= {"network_bytes": size, "small_enough": size <= MOST_BYTES}
    results |= {"command": " ".join(sys.argv), "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")}
    (folder / "training.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))
    return 0 if results["conversion"]["exit_code"] == results["sampling"]["exit_code"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
