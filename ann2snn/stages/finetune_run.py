"""Networks, finished blocks and files of one fine-tuning run: what makes it resumable at any block."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import checkpoint
from ..config import (
    FT_INPUTS,
    FT_METHODS,
    RESUME_WITH,
    SampleConfig,
    SpikingConfig,
    check_accumulate,
    check_ft_name,
    check_resume_with,
    require,
)
from ..convert import SpikingNetwork
from ..data import ImageDataset
from ..distributed.world import World
from ..errors import UserError
from ..files.atomic import cause, write_text
from ..files.beside import set_aside
from ..finetune import LEARNABLE, NETWORK, BlockReport, BlockTuning, expand_neurons, tied_proxy, tunable_blocks
from ..finetune.inputs import HELD_BACK
from ..generate.classes import classes_of
from ..nets.architecture import Network
from ..run.folder import BACKPACKS, TUNED, TUNING, TUNING_SUMMARY
from ..run.tables import counted, text_table
from ..training.state import parse_progress
from .claims import difference_text
from .common import changes_text, newest
from .convert import converted

#: Names in a run's identity that are not those of their flags → the flag.
FLAG_OF = {"decay": "lr_decay", "inputs": "ft_inputs"}
#: Flag → field of `SampleConfig`, for inputs that a sampler makes.
SAMPLER_FIELDS = {
    **{name: name for name in ("sampler", "eta", "denoise", "corrector", "grid_power", "tf32")},
    **{name: name for name in ("guidance", "class_label", "ddim_epsilon", "lower_order_final")},
    "sampler_steps": "steps", "clip_x0": "clip", "skip_type": "skip", "sampler_order": "order",
}  # fmt: skip


def made_of(dataset: ImageDataset, sample: SampleConfig, ann: Network, inputs: str) -> dict:
    """By flag, what decides inputs and judgement of a fine-tuning: a resumed run must share it. Data by fingerprint."""
    content = dataset.fingerprint_for(*classes_of(ann))
    settings = {"dataset_type": dataset.name, "data_dir": content, "amp": sample.amp}
    if inputs == "sampler" or sample.carry:
        settings |= {flag: getattr(sample, field) for flag, field in SAMPLER_FIELDS.items()}
        settings["var_type"] = ann.diffusion.var_type
    if sample.carry:
        settings |= {"carry": True, "carry_steps": sample.carry_steps}
    return settings


@dataclass(frozen=True)
class FineTuneConfig:
    """steps, lr: per block. sample_size 0: no sample grids. resume: continue from the last finished block.

    method, learn, neuron_lr, decay, calibrate, cache: see `BlockTuning`. learn (): weights for proxy, all for bptt.
    network_steps: of a last pass over all blocks at once; 0 for none. granularity: one threshold and charge per "layer"
    or per "channel". inputs: "data" or "sampler". name: goes to the end of the folder's name. resume_with: flags whose
    value may differ from that of the run that is resumed. gap_images: that the result is measured on; 0 for none.
    """

    steps: int
    lr: float
    batch_size: int
    save_step: int
    sample_size: int
    resume: bool
    seed: int
    method: str = "proxy"
    learn: tuple[str, ...] = ()
    granularity: str = "channel"
    neuron_lr: float = 1e-3
    decay: bool = False
    calibrate: bool = False
    cache: int = 0
    network_steps: int = 0
    inputs: str = "data"
    name: str = ""
    accumulate: int = 1
    spike_chunk: int = 0
    resume_with: tuple[str, ...] = ()
    gap_images: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "resume_with", check_resume_with(self.resume_with))
        if not self.learn:
            object.__setattr__(self, "learn", ("weights",) if self.method == "proxy" else LEARNABLE)
        require(self.method in FT_METHODS, f"--ft_method={self.method}: use one of {', '.join(FT_METHODS)}")
        require(self.inputs in FT_INPUTS, f"--ft_inputs={self.inputs}: use one of {', '.join(FT_INPUTS)}")
        require(self.granularity in ("layer", "channel"), f"--ft_granularity={self.granularity}: use layer or channel")
        unknown = set(self.learn) - set(LEARNABLE)
        require(
            not unknown,
            f"--ft_learn={','.join(self.learn)}: give one or more of {', '.join(LEARNABLE)}",
        )
        require(
            self.method == "bptt" or "charges" not in self.learn,
            "--ft_learn=charges: the proxy network has no charges and gives them no gradient; use --ft_method=bptt",
        )
        least = 0 if self.calibrate or self.network_steps else 1
        require(self.steps >= least, f"--ft_steps={self.steps}: use at least {least}")
        require(self.network_steps >= 0, f"--ft_network_steps={self.network_steps}: use 0 or more")
        require(self.cache >= 0, f"--ft_cache={self.cache}: use 0 or more")
        require(self.lr > 0, f"--lr={self.lr}: must be positive")
        require(self.neuron_lr > 0, f"--ft_neuron_lr={self.neuron_lr}: must be positive")
        require(self.batch_size >= 1, f"--ft_batch_size={self.batch_size}: use at least 1")
        check_accumulate(self.accumulate)
        check_ft_name(self.name)

    def folder_name(self, bits: int) -> str:
        """Folder of the results inside the logdir."""
        return f"SNN_{bits}bit_ft" + (f"_{self.name}" if self.name else "")

    def tuning(self, subject: str) -> BlockTuning:
        """How the block, or the whole network, called `subject` is tuned."""
        is_network = subject == NETWORK
        return BlockTuning(
            steps=self.network_steps if is_network else self.steps,
            lr=self.lr,
            method=self.method,
            learn=self.learn,
            neuron_lr=self.neuron_lr,
            decay=self.decay,
            calibrate=self.calibrate and not is_network,
            cache=0 if is_network else self.cache,
            accumulate=self.accumulate,
        )

    def fixed(self) -> dict:
        """What a resumed run must share with its beginning, by name of the flag."""
        return {
            "method": self.method,
            "ft_steps": self.steps,
            "lr": self.lr,
            "ft_batch_size": self.batch_size,
            "seed": self.seed,
            "learn": list(self.learn),
            "granularity": self.granularity,
            "ft_neuron_lr": self.neuron_lr,
            "decay": self.decay,
            "calibrate": self.calibrate,
            "ft_cache": self.cache,
            "ft_network_steps": self.network_steps,
            "inputs": self.inputs,
        }


class Run:
    """One fine-tuning run of the network converted from `ann`."""

    def __init__(
        self,
        folder: Path,
        ann: Network,
        spiking: SpikingConfig,
        config: FineTuneConfig,
        source: checkpoint.Loaded,
        world: World,
        inputs: dict | None = None,
    ) -> None:
        """inputs: see `made_of`."""
        self.inputs = inputs or {}
        self.changes: dict[str, tuple[object, object]] = {}  # settings that differ since `restore`, by flag
        self.folder, self.ann, self.config, self.source, self.world = folder, ann, config, source, world
        self.source_hash = source.hash  # of the file as it was when the run began
        self.snn: SpikingNetwork = converted(ann, spiking, config.spike_chunk)
        expand_neurons(self.snn, config.learn, config.granularity)
        self.proxy = tied_proxy(ann, self.snn)
        self.subjects = tunable_blocks(self.snn) if config.steps or config.calibrate else []
        self.subjects += [NETWORK] if config.network_steps else []
        self.reports: list[BlockReport] = []
        self.gaps: list[float] = []  # prediction gap on held-back images: converted, then after each block

    @property
    def steps_done(self) -> int:
        return self._steps(self.subjects[: len(self.reports)])

    @property
    def steps_planned(self) -> int:
        return self._steps(self.subjects)

    def _steps(self, subjects: list[str]) -> int:
        return sum(self.config.tuning(name).steps for name in subjects)

    @property
    def log_step(self) -> int:
        """First step in the log of the block that comes next. A block that is not tuned by steps takes one."""
        return sum(max(1, self.config.tuning(name).steps) for name in self.subjects[: len(self.reports)])

    def identity(self) -> dict:
        fixed = self.config.fixed() | self.inputs
        return {**fixed, "source": self.source_hash, "spiking": self.snn.spiking.to_dict()}

    def payload(self) -> dict:
        about = {"stage": "finetuned", "source": self.source_hash, "step": self.steps_done}
        return checkpoint.payload_from(self.snn, self.source, **about)

    def restore(self) -> None:
        """Take up a run that stopped between two blocks. Raises UserError if it is another run's."""
        state = self.folder / TUNING
        if state.exists() and not self.config.resume:
            raise UserError(f"{state} exists and would be overwritten: drop --noresume, or remove the folder")
        path = newest(state, self.world)
        if path is None:
            return
        raw = checkpoint.load(path).raw
        stored = raw.get("identity", {})
        stored = stored if isinstance(stored, dict) else {}
        stored = stored | {"spiking": SpikingConfig.completed(stored.get("spiking"))}
        self.changes = self._changes(stored, path)
        checkpoint.load_state(self.snn.net, raw["ema_model"], path)  # copies in place: the proxy stays tied
        self.reports, self.gaps = parse_progress(raw, self.subjects, path)
        print(f"resuming {self.folder}: {counted(len(self.reports), 'block')} done{changes_text(self.changes)}")

    def _changes(self, stored: dict, path: Path) -> dict[str, tuple[object, object]]:
        """{flag: (before, now)}. Raises UserError for a change that was not asked for."""
        free, changes = set(self.config.resume_with), {}
        if "dataset_type" in free:
            free.add("data_dir")
        for name, value in self.identity().items():
            unrecorded = name in self.inputs and name not in stored  # by a file of before, or of inputs of another kind
            if unrecorded or stored.get(name) == value:
                continue
            flag = FLAG_OF.get(name, name)
            if flag not in free:
                cure = f", or allow it with --resume_with={flag}" if flag in RESUME_WITH else ""
                raise UserError(
                    f"cannot resume {path}: it was made with {difference_text(name, stored.get(name), value)}; "
                    f"correct the flag, choose another --ft_name, or remove the folder{cure}"
                )
            changes[flag] = (stored.get(name), value)
        return changes

    def state(self) -> dict:
        """What `restore` takes up."""
        reports = [dataclasses.asdict(report) for report in self.reports]
        return self.payload() | {"identity": self.identity(), "reports": reports, "gaps": self.gaps}

    def save(self) -> None:
        if self.world.main:
            checkpoint.save(self.folder / TUNING, self.state(), keep_previous=True)

    @contextlib.contextmanager
    def rescuing(self) -> Iterator[None]:
        """Where a file of a finished block cannot be written, keep all finished blocks elsewhere. Raises UserError."""
        try:
            yield
        except (UserError, OSError) as error:
            if isinstance(error, OSError):
                error = UserError(f"cannot write {error.filename}: {cause(error)}")
            raise checkpoint.rescued(self.folder / TUNING, self.state(), error) if self.world.main else error from None

    def keep_if_best(self) -> None:
        """`model_best.pt` is the network with the smallest prediction gap so far, the untouched one included."""
        if self.world.main and self.gaps[-1] <= min(self.gaps):
            checkpoint.save(self.folder / TUNED, self.payload() | {"prediction_gap": self.gaps[-1]})

    def keep_earlier(self) -> None:
        """Where this run begins, keep a network that one tuned whose state is gone. Raises UserError."""
        path = self.folder / TUNED
        if not self.world.main or not path.exists():
            return
        with contextlib.suppress(UserError):
            if checkpoint.read(path).get("step", 0) == 0:  # untouched: this run's own first one, or worth no more
                return
        try:
            set_aside(path)
        except OSError as error:
            raise UserError(f"cannot keep {path}, which an earlier run has tuned: {cause(error)}") from None

    def save_backpack(self, stem: str) -> None:
        """`model_backpacks/{stem}_model.pt`: the network as it is now."""
        if not self.world.main:
            return
        folder = self.folder / BACKPACKS
        folder.mkdir(exist_ok=True)
        checkpoint.save(folder / f"{stem}_model.pt", self.payload())

    def finish(self) -> None:
        """Print and save the table of all blocks."""
        header = ["block", "gap before", "gap after", "best step", "steps", "seconds", "prediction gap"]
        rows = [
            [r.block, r.gap_before, r.gap_after, r.best_step, r.steps, r.seconds, gap]
            for r, gap in zip(self.reports, self.gaps[1:], strict=True)
        ]
        print(text_table(header, rows))
        best = min(self.gaps)
        judged = "of carried calls" if self.inputs.get("carry") else f"on {HELD_BACK} held-back images"
        print(f"prediction gap {judged}: {self.gaps[0]:.4f} converted, {best:.4f} best")
        print(f"{self.folder / TUNED}: the network with the smallest prediction gap")
        summary = {"identity": self.identity(), "prediction_gap": self.gaps, "best_gap": best}
        summary["blocks"] = [dataclasses.asdict(report) for report in self.reports]
        write_text(self.folder / TUNING_SUMMARY, json.dumps(summary, indent=1) + "\n")
