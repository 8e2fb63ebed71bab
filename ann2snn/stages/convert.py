"""Convert a trained network, measure what that cost, and show images of both from the same noise."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..checkpoints import checkpoint
from ..checkpoints.seal import content_hash
from ..config import AUTO, SampleConfig, SpikingConfig
from ..convert import GapReport, SpikingNetwork, convert, measure_gap
from ..convert.raster import record_raster
from ..distributed.runtime import place, prepare_folder
from ..distributed.world import World
from ..errors import UserError
from ..exchange import check_exported, export_to
from ..files.atomic import cause, file_hash, write_text
from ..generate.classes import columns
from ..generate.images import save_grid
from ..generate.probe import OwnPath
from ..generate.sampling import Hooks, generate_all
from ..generate.subject import Sampled
from ..hardware.export import GraphFile, planned, write_graph
from ..nets.architecture import Network
from ..nets.direct import DirectDenoiser
from ..run.folder import CARRY_FILE, CONVERTED, COST_FILE, GAP_FILE, PATHS_FILE, PICTURES, RASTER_FILE, RunFolder
from ..run.rasters import save_rasters
from ..run.tables import counted, distance, gap_table, parameters_of
from .carrying import measure_carrying
from .common import owning
from .cost import measure_and_write
from .export import check_target, export
from .paths import FirstPath, write_paths

GAP_TIMES = 4  # diffusion times at which the gap is measured


@dataclass(frozen=True)
class ConvertConfig:
    """gap_images, grid_images: that gap and cost are measured on, and that the grids show; 0 for none.

    exported: a new folder that gets the network and a card, too. nir_file: a new file that gets its graph at that time.
    programs: new files that hold its one pass, as `exchange` writes them: ("program" or "onnx", path).
    spike_chunk: see `SpikingNetwork.set_spike_chunk`.
    """

    grid_images: int
    gap_images: int
    batch_size: int
    spike_chunk: int = 0
    exported: Path | None = None
    nir_file: GraphFile | None = None
    programs: Sequence[tuple[str, Path]] = ()

    def new_files(self) -> list[tuple[Path, str]]:
        """What is written outside the run folder: (path, the flag that names it)."""
        files = [] if self.exported is None else [(self.exported, "--export")]
        files += [] if self.nir_file is None else [(self.nir_file.path, "--export_nir")]
        return files + [(path, f"--export_{kind}") for kind, path in self.programs]


def run(
    folder: RunFolder,
    source: checkpoint.Loaded,
    spiking: SpikingConfig,
    sample: SampleConfig,
    config: ConvertConfig,
    world: World,
) -> int:
    """Write `converted_snn.pt`, `gap.json`, `cost.json`, `raster.npz`, `images/` and `trajectory.npz` to `folder`.

    Prints the tables. Returns the exit code.
    """
    if sample.carry:
        spiking.check_carrying()
    ann = place(source.unconverted, world.device)
    snn = converted(ann, spiking, config.spike_chunk)
    if config.exported is not None:
        check_target(config.exported, folder.path)
    for kind, path in config.programs:
        check_exported(snn, path, kind)
    nir_file = config.nir_file
    graph: Any = None
    if nir_file is not None:
        graph = planned(snn, nir_file.time, nir_file.path, fold_norms=nir_file.fold_norms)
    logdir = prepare_folder(folder.path)
    for target, flag in config.new_files():
        prepare_folder(target.parent, flag)  # now, not after everything has been measured
    with owning(logdir, "convert", world):
        folder.begin(world)
        if world.main:
            kept = {"stage": "converted", "source": source.hash, "step": source.step}
            payload = checkpoint.payload_from(snn, source, **kept)
            set_aside_earlier(logdir, payload)
            checkpoint.save(logdir / CONVERTED, payload)
            steps = f"T = {snn.clock.spike_steps} time steps"
            network = f"{parameters_of(ann)}, {ann.config.bits} bits, {steps}, {spiking.schedule}"
            print(f"{logdir / CONVERTED}: {network}, on {world.device}")
            if config.gap_images:
                measure(logdir, ann, snn, spiking, sample, config.gap_images)
            if config.exported is not None:
                hashes = (source.hash, file_hash(logdir / CONVERTED))
                export(config.exported, snn, source, logdir, hashes, measured=config.gap_images > 0)
                print(f"{config.exported}: the network and its card; ann2snn.load reads it")
            if nir_file is not None:
                write_graph(graph, nir_file.path)
                print(f"{nir_file.path}: {len(graph.nodes)} nodes of NIR, the network at t = {nir_file.time:g}")
            for kind, path in config.programs:
                export_to(kind, snn, path)
                print(f"{path}: one pass of the network, which is the quantized network's too")
        if config.grid_images:
            write_grids(logdir, (snn, ann), sample, config.grid_images, config.batch_size, world)
        world.wait()
    return 0


def set_aside_earlier(logdir: Path, payload: dict) -> None:
    """Give figures and grids of another network, which was converted here before, names of their own: `gap.prev.json`.

    Else it would pass for this network's where this conversion measures or draws less, or ends early. Raises UserError.
    """
    measured = [logdir / name for name in (GAP_FILE, COST_FILE, CARRY_FILE, RASTER_FILE, PATHS_FILE)]
    measured += [path for path in (logdir / PICTURES).glob("*.png") if _GRID.fullmatch(path.name)]
    measured = [path for path in measured if path.exists()]
    if not measured or not (logdir / CONVERTED).exists():
        return
    try:
        earlier = checkpoint.read(logdir / CONVERTED)
    except UserError:  # damaged: nobody can tell which network it was
        earlier = {}
    if _content(earlier) == _content(payload):
        return
    for path in measured:
        aside = checkpoint.previous_of(path)
        try:
            os.replace(path, aside)
        except OSError as error:
            raise UserError(f"cannot rename {path}, which is of another network: {cause(error)}") from None
        print(f"note: {path} is of another network: it is now {aside.name}")


_GRID = re.compile(r"ANN\.png|SNN_T[0-9]+(_carried)?\.png")  # what `grid_name` calls them


def _content(payload: dict) -> str:
    """A hash of a file's network, without how it runs and was trained."""
    config = {name: value for name, value in payload.get("config", {}).items() if name not in ("spiking", "train")}
    return content_hash({"weights": payload.get("ema_model"), "config": config})


def measure(
    logdir: Path, ann: Network, snn: SpikingNetwork, spiking: SpikingConfig, sample: SampleConfig, images: int
) -> None:
    """Write `gap.json`, `cost.json`, `raster.npz`, and where levels are carried `carry.json`; print the tables."""
    visited = OwnPath(ann, images, sample.seed)
    reports = gap_reports(visited, snn, spiking)
    write_gap(logdir / GAP_FILE, reports, images, depth=snn.depth)
    print_gap(reports, images)
    modes, calls = [report.spiking for report in reports], sample.calls(ann.diffusion) * sample.branches
    measure_and_write(logdir / COST_FILE, visited, {"converted": snn}, modes, calls)
    if sample.carry:
        measure_carrying(logdir / CARRY_FILE, visited, snn, sample)
    write_raster(logdir / RASTER_FILE, visited, snn)
    errors = (f"{report.label} {distance(report.prediction.error)}" for report in reports)
    print(f"The spiking network's prediction: {'; '.join(errors)}.")


def converted(ann: nn.Module, spiking: SpikingConfig, spike_chunk: int = 0) -> SpikingNetwork:
    """`ann` as a spiking network that is ready to run. Raises UserError."""
    snn = convert(ann, spiking)
    snn.set_spike_chunk(spike_chunk)
    return snn


def gap_reports(visited: OwnPath, snn: SpikingNetwork, spiking: SpikingConfig) -> list[GapReport]:
    """Gap under layer_sync, under stream without settling, and (cumulative norm) under stream with auto settling.

    visited: states of the ANN's sampling path.
    """
    stream = replace(spiking, schedule="stream", settle_steps=0, burst=1)
    modes = [spiking.changed(schedule="layer_sync"), stream]
    if spiking.stream_norm == "cumulative" and (settled := settling(stream)):
        modes.append(settled)
    if spiking not in modes:
        modes.append(spiking)
    return gaps_under(visited, snn, modes)


def settling(spiking: SpikingConfig) -> SpikingConfig | None:
    """`spiking` under stream until nothing fires any more; None for a norm or a neuron that need not fall silent."""
    try:
        return replace(spiking, schedule="stream", settle_steps=AUTO)
    except UserError:
        return None


def gaps_under(visited: OwnPath, snn: SpikingNetwork, modes: list[SpikingConfig]) -> list[GapReport]:
    """Gap of `snn` run in each of `modes`, in float64, on states of the ANN's sampling path."""
    snn = copy.deepcopy(snn).double()
    x, t, *classes = visited.states(GAP_TIMES)
    return [measure_gap(visited.net, snn, x, t, mode, y=classes[0] if classes else None) for mode in modes]


def write_gap(path: Path, reports: list[GapReport], images: int, **extra: object) -> None:
    """The gap table as JSON, with how it was measured."""
    content = {"images": images, "times": GAP_TIMES, "dtype": "float64", "inputs": "states of the ANN's DDIM path"}
    write_text(path, json.dumps(content | extra | {"reports": [r.to_dict() for r in reports]}, indent=1) + "\n")


def write_raster(path: Path, visited: OwnPath, snn: SpikingNetwork) -> None:
    """Spikes of a few neurons of every layer under layer_sync and stream, in float64, halfway along a sampling path.

    Stream settles as `snn` is set to, or if it is not, until nothing fires: its first T steps are those without.
    """
    snn = copy.deepcopy(snn).double()
    x, t, *classes = visited.halfway()
    stream = replace(snn.spiking, schedule="stream")
    modes = [SpikingConfig("layer_sync"), stream if stream.settle_steps else settling(stream) or stream]
    rasters = []
    for mode in modes:
        with snn.running_as(mode):
            rasters.append(record_raster(snn, x, t, seed=visited.seed, y=classes[0] if classes else None))
    save_rasters(path, rasters)


def print_gap(reports: list[GapReport], images: int) -> None:
    """The table, and what its errors are relative to."""
    print(gap_table(reports))
    print(
        "error: relative L2 of the time-averaged output against the quantized ANN, in float64, on "
        f"{counted(images, 'image')} at {GAP_TIMES} times of the ANN's own sampling path"
    )


def grid_name(net: nn.Module, carried: bool = False) -> str:
    """`images/SNN_T{T}.png` for a converted network, SDDPM_T or FSDDIM_T for those, `images/ANN.png` for an ANN.

    carried: `images/SNN_T{T}_carried.png`.
    """
    if isinstance(net, DirectDenoiser):
        return f"{PICTURES}/{net.config.arch.upper()}_T{net.spike_steps}.png"
    if not isinstance(net, SpikingNetwork):
        return f"{PICTURES}/ANN.png"
    return f"{PICTURES}/SNN_T{net.clock.spike_steps}{'_carried' if carried else ''}.png"


def write_grids(
    logdir: Path, nets: Iterable[Sampled], sample: SampleConfig, count: int, batch_size: int, world: World
) -> None:
    """A picture of each network's images, all from the same noise, named by `grid_name`.

    Where levels are carried, a spiking network's are drawn without that as well. The way of the first images, as the
    quantized and the spiking network take it, goes to `trajectory.npz`.
    """
    paths: dict[bool, tuple[FirstPath, Tensor]] = {}
    drawings = [(net, sample.from_rest()) for net in nets]
    if sample.carry:
        drawings += [(net, sample) for net, _ in drawings if isinstance(net, SpikingNetwork)]
    for net, net_sample in drawings:
        path = logdir / grid_name(net, net_sample.carry)
        kept = FirstPath(net)
        images = generate_all(net, net_sample, count, batch_size, world, hooks=Hooks(on_step=kept.watch))
        paths[isinstance(net, SpikingNetwork)] = kept, images  # of a spiking network the last way, that asked for
        if world.main:
            save_grid(images, path, columns(net, net_sample, count))
            calls = counted(sample.calls(net.diffusion), "network call")
            print(f"{path}: {counted(count, 'image')}, {sample.sampler}, {calls}")
    if world.main and len(paths) == 2:
        spiking = next(net.spiking.to_dict() for net, _ in drawings if isinstance(net, SpikingNetwork))
        write_paths(logdir / PATHS_FILE, paths[False], paths[True], sample, spiking)
