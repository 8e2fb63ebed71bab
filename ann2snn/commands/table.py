"""The subcommands of `ann2snn`, with what the list of them says. Imports none of them: a list is wanted at once."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """module: below `ann2snn`, has `main`. script: of a checkout, does the same; empty for commands that have none,
    whose `main` takes a list of arguments."""

    module: str
    summary: str
    script: str = ""


COMMANDS = {
    "train": Command("commands.train", "train the network that will be converted", "ANN_train.py"),
    "train-snn": Command("commands.train_snn", "train a spiking network directly", "SNN_train.py"),
    "convert": Command("commands.convert", "turn a quantized network into a spiking one", "SNN_conversion.py"),
    "finetune": Command("commands.finetune", "fine-tune the spiking network", "SNN_ft.py"),
    "evaluate": Command("commands.evaluate", "generate images with a network, and score them", "evaluate.py"),
    "report": Command("report.__main__", "summarise a run folder on one page"),
    "export": Command("commands.export", "write a network as a folder to hand on"),
    "demo": Command("commands.demo", "the whole way on shipped data, some minutes on a CPU"),
    "autoencoder": Command("commands.autoencoder", "train an autoencoder whose latents can be diffused"),
    "fad": Command("fad", "train the encoder of the Fréchet autoencoder distance"),
    "toy": Command("toy.__main__", "processes and samplers on points of the plane"),
}
