"""The folder of a run: what its files are called, and the settings that its commands leave there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..distributed.runtime import prepare_folder
from ..distributed.world import World
from ..files.atomic import sweep, write_text

#: Networks: the newest of a training, the one that scored best, trained as a spiking one, converted.
CHECKPOINT, BEST, TRAINED, CONVERTED = "ckpt.pt", "best.pt", "trained_snn.pt", "converted_snn.pt"
#: What was measured of a network.
GAP_FILE, COST_FILE, CARRY_FILE, RASTER_FILE = "gap.json", "cost.json", "carry.json", "raster.npz"
PATHS_FILE = "trajectory.npz"
#: Lines for programs: of the log, and of the scores.
LINES, RESULTS = "log.jsonl", "snn_eval.txt"
#: Of a fine-tuning, in a folder of its own: the best network, the state that is resumed, the table of the blocks.
TUNED, TUNING, TUNING_SUMMARY = "model_best.pt", "ft_state.pt", "finetune.json"
BACKPACKS, BLOCK_SAMPLES = "model_backpacks", "ft_blocks_samples"
#: Pictures: training images, samples while training, and all others.
REAL_IMAGES, SAMPLES, PICTURES = "real.png", "sample", "images"
#: Folder of the averages that a training keeps on its way, and the lines of searches among those built of them.
SNAPSHOTS, WIDTHS = "power_ema", "power_ema.jsonl"
WIDTHS_BEGUN = "power_ema.{}.begun.jsonl"  # of a search that is not done, by what it goes by
#: The flags of the training; those of another stage are in `flagfile.{stage}.txt`.
FLAGFILE = "flagfile.txt"
#: Folders of numbered images, one for each way to make them; in each how they were made, and their spikes.
GENERATED, SETTINGS, SPIKES_FILE = "generated", "settings.json", "spikes.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, and the settings of the command that writes to it.

    flagfile: the name of the file that keeps `settings`, the flags of the command; "" where there are none.
    outer: the run that this one is a part of, in whose folder the settings are kept.
    """

    path: Path
    flagfile: str = ""
    settings: str = ""
    outer: RunFolder | None = None

    def inside(self, name: str) -> RunFolder:
        """The folder `name` in this one, of a run that begins where this one does."""
        return RunFolder(self.path / name, outer=self)

    def begin(self, world: World) -> None:
        """Keep the command's settings beside its results, and remove what killed stages left half-written.

        A command that is refused must not replace the settings of the run that is there: a stage calls it after every
        check, before it writes anything. Raises UserError.
        """
        if self.outer is not None:
            self.outer.begin(world)
        if not self.flagfile:
            return
        prepare_folder(self.path)
        if world.main:
            sweep(self.path)
            write_text(self.path / self.flagfile, self.settings)

    def best_or_last(self) -> Path:
        """The weights of a training that scored best, or its newest checkpoint if none were scored."""
        best = self.path / BEST
        return best if best.exists() else self.path / CHECKPOINT

    def sample_grid(self, step: int) -> Path:
        """Images of the network after a step of its training."""
        return self.path / SAMPLES / f"{step}.png"
