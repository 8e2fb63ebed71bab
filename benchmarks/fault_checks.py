"""What must hold of a run folder after a kill, and at the end, for `benchmarks.faults`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ann2snn.checkpoints import checkpoint
from ann2snn.checkpoints.seal import HASH, content_hash
from ann2snn.run.folder import CHECKPOINT, LINES, RESULTS
from ann2snn.run.lines import read_log

from .fault_runs import TUNED

STATE, BEST, CONVERTED = f"{TUNED}/ft_state.pt", f"{TUNED}/model_best.pt", "converted_snn.pt"
#: What differs between two equal runs: when, how long, where, and hashes of files, whose layout may differ.
VOLATILE = {"seconds", "date", "reference", "source", "checkpoint", HASH}
_LOGS = (LINES, RESULTS)
#: (file, entry) of the weights that a run ends with.
RESULTS_WEIGHTS = [(CHECKPOINT, "net_model"), *((name, "ema_model") for name in (CHECKPOINT, CONVERTED, STATE, BEST))]


def files(logdir: Path) -> list[Path]:
    """The files of a run whose content is checked: all but locks, temporary and flag files, and TensorBoard's."""
    paths = (p for p in logdir.rglob("*") if p.is_file() and not p.name.startswith((".", "events.", "flagfile")))
    return sorted(paths)


def unloadable(logdir: Path, cut_lines: bool = False) -> list[str]:
    """`file: reason` for every file that cannot be loaded, or whose content does not match its hash.

    cut_lines: logs may hold some, which readers skip, as they do once a disk was full.
    """
    problems = []
    for path in files(logdir):
        if cut_lines and path.name in _LOGS:
            continue
        try:
            _load(path)
        except Exception as error:  # whatever the reader raises is the finding
            problems.append(f"{path.relative_to(logdir)}: {error or type(error).__name__}")
    return problems


def _load(path: Path) -> object:
    if path.suffix == ".pt":
        payload = checkpoint.read(path)
        if HASH not in payload:
            raise ValueError("carries no hash")
        return payload
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays}
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.verify()
        with Image.open(path) as image:
            return np.asarray(image)
    if path.name in _LOGS:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return json.loads(path.read_text(encoding="utf-8"))


def fingerprints(logdir: Path, without: Collection[str] = ()) -> dict[str, str]:
    """{file: hash of its content}, without what differs between two equal runs. Previous checkpoints are left out:
    which steps they are of depends on where a run stopped."""
    paths = {str(path.relative_to(logdir)): path for path in files(logdir) if not path.stem.endswith(".prev")}
    return {name: _fingerprint(path) for name, path in paths.items() if name not in without}


def _fingerprint(path: Path) -> str:
    content = _stable(_load(path))
    if path.suffix == ".pt":
        return content_hash(content)
    if path.suffix == ".npz":
        digest = hashlib.sha256()
        for name, array in sorted(content.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()
    if path.suffix == ".png":
        return hashlib.sha256(content.tobytes()).hexdigest()
    if path.name == RESULTS:  # a run killed after its score was written scores again, and adds the same line
        content = sorted({json.dumps(line, sort_keys=True) for line in content})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stable(content: object) -> object:
    if isinstance(content, dict):
        return {key: _stable(value) for key, value in content.items() if key not in VOLATILE}
    return [_stable(item) for item in content] if isinstance(content, list) else content


def is_log(name: str) -> bool:
    """Whether a file, by its name in the run folder, gets lines added."""
    return name.rpartition("/")[2] in _LOGS


def differences_of_log(path: Path, reference: Path) -> bool:
    """Whether a log says anything that the uninterrupted run's does not; on a full disk it may lack lines."""
    entries, expected = ([_stable(entry) for entry in read_log(file)] for file in (path, reference))
    return any(entry not in expected for entry in entries)


def differences(fingerprints: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Files whose content differs, or that only one of two runs has."""
    return sorted(
        name for name in fingerprints.keys() | expected.keys() if fingerprints.get(name) != expected.get(name)
    )


def stage_of(name: str) -> str:
    """The stage that writes a file."""
    if name.startswith(TUNED):
        return "fine-tune"
    if name == "stats.npz":
        return "statistics"
    if name.startswith("generated") or name in (RESULTS, "images/images.png"):
        return "evaluate"
    return "train" if name.startswith(("ckpt", "sample/", "real", LINES)) else "convert"


def weight_distance(logdir: Path, reference: Path) -> float:
    """Largest relative L2 distance of the weights of two runs, over the files that hold the results."""
    pairs = [[_weights(folder / name, key) for folder in (logdir, reference)] for name, key in RESULTS_WEIGHTS]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def _weights(path: Path, key: str) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in checkpoint.read(path)[key].values()])


def image_times(logdir: Path) -> dict[Path, int]:
    """When each generated image was written, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in logdir.glob("generated/images/*.png")}


def position(stage: str, logdir: Path, since: int) -> tuple[str, float | None]:
    """How far a stage that was killed had come, and the training or tuning steps that are lost; None where work is
    not counted in steps. since: when it was started, in nanoseconds since the epoch."""
    if stage == "train":
        log, saved = logdir / LINES, _read(logdir / CHECKPOINT).get("step", 0)
        is_current = log.exists() and log.stat().st_mtime_ns >= since  # not yet the log of an earlier start
        reached = max((entry["step"] + 1 for entry in read_log(log)), default=0) if is_current else saved
        return f"step {reached}, checkpoint {saved}", max(0, reached - saved)
    if stage == "fine-tune":
        finished = {report["block"] for report in _read(logdir / STATE).get("reports", [])}
        steps = [path for path in logdir.glob(f"{TUNED}/model_backpacks/*.pt") if path.stat().st_mtime_ns >= since]
        unsaved = [path for path in steps if re.sub(r"_\d+_model$", "", path.stem) not in finished]
        return f"{len(finished)} blocks done, {len(unsaved)} steps of the next", len(unsaved)
    if stage == "evaluate":
        return f"{len(image_times(logdir))} images", None
    names = (
        (CONVERTED, "gap.json", "cost.json", "raster.npz", "images/ANN.png") if stage == "convert" else ["stats.npz"]
    )
    present = [name for name in names if (logdir / name).exists()]
    return f"written: {', '.join(present) or 'nothing'}", None


def _read(path: Path) -> dict:
    return checkpoint.read(path) if path.exists() else {}
