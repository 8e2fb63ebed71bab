"""Step 4: the scripts from end to end, a signal and a resume, and a run that changes its device twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.setting import Setting

NETWORK = [
    "--dataset_type=fashion_mnist_10k", "--img_size=8", "--ch=8", "--ch_mult=1", "--ch_mult=2", "--bit=2",
    "--num_res_blocks=1", "--norm_groups=4", "--dropout=0", "--T=50", "--warmup=3", "--batch_size=8",
]  # fmt: skip
SAMPLING = ["--sampler=ddim", "--sampler_steps=3"]


def run(script: str, *flags: str) -> str:
    """Standard output. Raises RuntimeError with the last line of what it complained about."""
    completed = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True, timeout=120)
    if completed.returncode:
        raise RuntimeError(f"{script}: {(completed.stderr.strip().splitlines() or ['no words'])[-1]}")
    return completed.stdout


def train(folder: Path, device: str, steps: int) -> str:
    flags = ["--train", f"--logdir={folder}", f"--device={device}", f"--total_steps={steps}", "--save_step=2"]
    return run("ANN_train.py", *NETWORK, *flags, "--sample_step=0")


def stages(folder: Path, device: str) -> dict[str, object]:
    begun = time.monotonic()
    train(folder, device, 4)
    common = [f"--logdir={folder}", f"--device={device}", *SAMPLING]
    run("SNN_conversion.py", "--eval", *common, "--gen_images=4", "--gap_images=1", "--carry")
    run("SNN_ft.py", "--fine_tune", *common, "--ft_steps=1", "--ft_batch_size=4", "--sample_step=0")
    run("evaluate.py", "--sample_only", *common, "--num_images=4", "--carry")
    return {"seconds": time.monotonic() - begun}


def interrupted(folder: Path, device: str) -> dict[str, object]:
    """SIGTERM in mid-training, then the same command."""
    flags = [*NETWORK, "--train", f"--logdir={folder}", f"--device={device}", "--save_step=2", "--sample_step=0"]
    running = subprocess.Popen(
        [sys.executable, "ANN_train.py", *flags, "--total_steps=1000000", "--log_step=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    end = time.monotonic() + 60
    while not (folder / "ckpt.pt").exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=60)
    step = int(out.split("stopped at step ")[1].split(";")[0])
    resumed = run("ANN_train.py", *flags, f"--total_steps={step + 2}")
    return {"code": running.returncode, "step": step, "resumed": f"at step {step}" in resumed}


def main() -> None:
    setting = Setting.of_arguments(__doc__)
    device = setting.device.type
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        setting.attempt("stages", lambda: stages(folder / "stages", device))
        setting.attempt("SIGTERM and resume", lambda: interrupted(folder / "signal", device))

        def travel() -> dict[str, object]:
            outs = [
                train(folder / "travel", device_name, 2 * turn)
                for turn, device_name in enumerate((device, "cpu", device), 1)
            ]
            return {"resumed": ["resuming" in out for out in outs]}

        setting.attempt("device, CPU, device", travel)


if __name__ == "__main__":
    main()
