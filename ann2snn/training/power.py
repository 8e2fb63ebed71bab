"""Power-function averages of a training, from its first step on, and the snapshots that are kept of them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import nn

from ..checkpoints import checkpoint, power
from ..checkpoints.seal import HASH, content_hash
from ..diffusion.power_ema import Profile, gamma_of, power_decay_at
from ..errors import UserError
from ..files.atomic import cause
from ..files.beside import set_aside
from ..files.warning import warn
from .state import require_same

SNAPSHOTS = 32  # of a training, where no interval is named
GB = 10**9


class PowerAverages:
    """Averages of a network's weights, one for each width σ_rel, beside the usual one; none without widths."""

    def __init__(self, net: nn.Module, widths: Iterable[float]) -> None:
        self.nets = {sigma: copy.deepcopy(net).requires_grad_(False).eval() for sigma in widths}
        self.snapshots: dict[Profile, str] = {}

    def decays(self, step: int) -> Iterator[tuple[nn.Module, float]]:
        """Each average, and its decay after `step` updates."""
        return ((net, power_decay_at(step, gamma_of(sigma))) for sigma, net in self.nets.items())

    def payload(self) -> dict:
        """What a checkpoint holds of them."""
        if not self.nets:
            return {}
        states = {sigma: net.state_dict() for sigma, net in self.nets.items()}
        return {power.ENTRY: power.payload_of(power.Kept(states, self.snapshots))}

    def restore(self, raw: dict, path: Path) -> None:
        """Continue those of a checkpoint. Raises UserError unless it has the same widths: none can begin late."""
        kept = power.kept_in(raw, path)
        require_same(path, "power_ema", _listed(kept.averages), _listed(self.nets))
        for sigma, state in kept.averages.items():
            loaded = checkpoint.load(path, payload=raw | {"ema_model": state})
            self.nets[sigma].load_state_dict(loaded.net.state_dict())
        self.snapshots = kept.snapshots

    def write(self, folder: Path, about: dict) -> None:
        """Keep the present averages. about: what a checkpoint says of its network.

        A file with other content that has the name stays under another. Where the disk refuses, a warning says so, and
        training goes on without this snapshot.
        """
        for sigma, net in self.nets.items():
            average = Profile(sigma, about["step"])
            payload = about | {"ema_model": net.state_dict(), "weights": f"power{sigma:g}"}
            path, content = folder / power.snapshot_name(average), content_hash(payload)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if not _holds(path, content):
                    set_aside(path)
                    checkpoint.save(path, payload)
            except (UserError, OSError) as error:
                reason = cause(error) if isinstance(error, OSError) else error
                warn(f"{path} is not kept: {reason}")
                continue
            self.snapshots[average] = content

    def announcement(self, folder: Path, snapshots: int) -> str:
        """How much that many snapshots take of the disk, and what is left of it."""
        size = snapshots * sum(value.nbytes for net in self.nets.values() for value in net.state_dict().values())
        free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
        lack = "; that is too much, so that the last will be missing" if size > free else ""
        averages_text = f"{snapshots} snapshots of --power_ema={_listed(self.nets)}"
        return f"{folder}: {averages_text}, {size / GB:.3g} GB of {free / GB:.3g} GB free{lack}"


def _listed(widths: Iterable[float]) -> str:
    return ",".join(f"{sigma:g}" for sigma in widths) or "none"


def _holds(path: Path, content: str) -> bool:
    """Whether the file is there, whole, and of that content: of the same run, which ended before its checkpoint."""
    try:
        return path.exists() and checkpoint.read(path).get(HASH) == content
    except UserError:
        return False
