"""What this program does on a GPU: correctness first, then speed, in five minutes.

    python benchmarks/gpu_proof.py --out logs/gpu --deadline 300
    python -m benchmarks.gpu_proof --out logs/gpu --device cpu --tiny

Every step is a process with a limit of its own; the most important come first, findings are on the disk at once, and a
step that fails or is cut short stops nothing. Writes OUT/proof.json, OUT/proof.md and OUT/<step>.log. The Triton checks
run beside the first steps. Exit code 0 if every step came to its end without a failure, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNEL_CHECKS = "tests/kernels/triton_checks.py"


@dataclass(frozen=True)
class Step:
    """seconds: its limit. module: of `benchmarks.gpu`, or "" for the checks of kernels with pytest."""

    name: str
    seconds: int
    title: str
    module: str = ""


KERNELS = Step("kernels", 90, "Triton kernels against torch")
STEPS = (  # in the order of what they are worth
    Step("ceilings", 20, "versions and ceilings", "ceilings"),
    Step("networks", 60, "every network, schedule and sampler; where the program waits for the GPU", "networks"),
    Step("equality", 40, "the GPU against the CPU, spiking against quantized networks", "equality"),
    Step("timings", 100, "timings", "timings"),
    Step("scripts", 80, "the scripts from end to end, interrupted, and from device to device", "scripts"),
    Step("worlds", 20, "a process group", "worlds"),
    Step("compiling", 80, "--compile", "compiling"),
)


@dataclass(frozen=True)
class Outcome:
    """state: "ended", "cut short" or "exit code n"."""

    step: Step
    state: str
    seconds: float
    findings: list[dict]

    @property
    def is_good(self) -> bool:
        return self.state == "ended" and not any("failed" in finding for finding in self.findings)


def command(step: Step, args: argparse.Namespace, findings: Path) -> list[str]:
    if not step.module:
        workers = ["-n", "8"] if args.device == "cuda" else []
        options = ["--noconftest", "-p", "no:cacheprovider", "--import-mode=importlib", *workers]
        return [sys.executable, "-m", "pytest", *options, KERNEL_CHECKS]
    tiny = ["--tiny"] if args.tiny else []
    module = f"benchmarks.gpu.{step.module}"
    return [sys.executable, "-m", module, f"--device={args.device}", f"--out={findings}", *tiny]


def start(step: Step, args: argparse.Namespace) -> subprocess.Popen:
    """The step's process, whose words go to OUT/<step>.log."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if not step.module:
        on_gpu = args.device == "cuda"
        environment |= {"TRITON_INTERPRET": "0" if on_gpu else "1", "KERNEL_DEVICE": args.device}
    with open(args.out / f"{step.name}.log", "w", encoding="utf-8") as log:
        line = command(step, args, findings_of(step, args))
        return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def findings_of(step: Step, args: argparse.Namespace) -> Path:
    return (args.out / f"{step.name}.jsonl").resolve()


def finish(step: Step, running: subprocess.Popen, begun: float, limit: float, args: argparse.Namespace) -> Outcome:
    """Wait for a step, at most until `limit` seconds after `begun`."""
    try:
        code = running.wait(timeout=max(0.1, begun + limit - time.monotonic()))
        state = "ended" if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, 9)
        running.wait()
        state = "cut short"
    path, findings = findings_of(step, args), []
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        findings = [json.loads(line) for line in lines if line.endswith("}")]
    elif not step.module:
        words = (args.out / f"{step.name}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        findings = [{"name": "pytest", "said": words[-1] if words else ""}]
    return Outcome(step, state, time.monotonic() - begun, findings)


def prove(args: argparse.Namespace) -> list[Outcome]:
    """All steps under one deadline; what there is no time for is left out, and said so."""
    begun, outcomes = time.monotonic(), []
    kernel_checks = (start(KERNELS, args), begun) if args.kernels else None
    for step in STEPS:
        if args.only and step.name not in args.only:
            continue
        remaining = args.deadline - (time.monotonic() - begun)
        if remaining < 5:
            outcomes.append(Outcome(step, "not started: no time was left", 0.0, []))
            continue
        at = time.monotonic()
        outcomes.append(finish(step, start(step, args), at, min(step.seconds * args.patience, remaining), args))
        report(args, outcomes)
    if kernel_checks is not None:
        limit = max(KERNELS.seconds * args.patience, time.monotonic() - begun)
        outcomes.append(finish(KERNELS, *kernel_checks, min(limit, args.deadline), args))
    return outcomes


def report(args: argparse.Namespace, outcomes: list[Outcome]) -> None:
    """OUT/proof.json and OUT/proof.md."""
    about = {
        "command": " ".join(["python", "benchmarks/gpu_proof.py", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": args.device,
        "tiny": args.tiny,
    }
    steps = [
        {"step": o.step.name, "state": o.state, "seconds": round(o.seconds, 1), "findings": o.findings}
        for o in outcomes
    ]
    (args.out / "proof.json").write_text(json.dumps(about | {"steps": steps}, indent=1) + "\n", encoding="utf-8")
    (args.out / "proof.md").write_text(page(about, outcomes), encoding="utf-8")


def page(about: dict, outcomes: list[Outcome]) -> str:
    """The findings as Markdown."""
    lines = [f"`{about['command']}`, {about['date']}, device {about['device']}{', tiny' if about['tiny'] else ''}", ""]
    for outcome in outcomes:
        lines += [f"### {outcome.step.title}", "", f"{outcome.state}, {outcome.seconds:.0f} s", ""]
        if outcome.findings:
            lines += ["| what | found |", "| --- | --- |"]
            lines += [f"| {finding['name']} | {finding_text(finding)} |" for finding in outcome.findings]
            lines.append("")
    return "\n".join(lines)


def finding_text(finding: dict) -> str:
    values = {name: value for name, value in finding.items() if name != "name"}
    cells = []
    for name, value in values.items():
        if isinstance(value, dict):
            value = f"{len(value)} entries" if len(value) > 6 else ", ".join(f"{k}: {v}" for k, v in value.items())
        cells.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return "; ".join(cells).replace("|", "/") or "–"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for what is found; made if missing")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="sizes for a try on a CPU")
    parser.add_argument("--deadline", type=float, default=300, help="seconds in all")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on the steps' limits, on slow machines")
    parser.add_argument("--no-kernels", dest="kernels", action="store_false", help="leave the Triton checks out")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="these steps alone")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    if any(args.out.glob("*.jsonl")):
        print(f"error: {args.out} holds findings of an earlier run: choose another --out", file=sys.stderr)
        return 2
    outcomes = prove(args)
    report(args, outcomes)
    for outcome in outcomes:
        bad = [finding for finding in outcome.findings if "failed" in finding]
        print(f"{outcome.step.name}: {outcome.state}, {outcome.seconds:.0f} s, {len(outcome.findings)} findings")
        for finding in bad:
            print(f"  {finding['name']}: {finding['failed']}")
    print(args.out / "proof.md")
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
