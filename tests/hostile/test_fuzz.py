"""Random damage to every kind of file that is read: success or one clear line, never a traceback, a hang or code run.

Each test runs all its examples in one child process with bounded memory. An example that takes longer than its time is
ended by the alarm, which fails the test, and the last example's description is in the failure.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ann2snn.checkpoints import checkpoint
from ann2snn.cli import flags
from ann2snn.cli import settings as from_flags
from ann2snn.data.decode import check_image, decode_image
from ann2snn.metrics.stats_file import read_stats
from ann2snn.report.collect import collect
from ann2snn.run.rasters import load_rasters
from tests.hostile.contained import limit, refusal, tree
from tests.hostile.corpus import CHECKPOINTS, encoded, npz_of, payload, repacked, save_valid, stats_arrays
from tests.report.run_folder import write_rasters, write_run
from tests.scripts import ROOT

pytestmark = pytest.mark.slow
SECONDS_EACH, MEMORY = 10, 1 << 30
CASES = {"checkpoint bytes": 400, "checkpoint pickles": 400, "checkpoint values": 300, "arrays": 400}
CASES |= {"array contents": 200, "images": 800, "flagfiles": 400, "run folders": 200}
assert sum(CASES.values()) >= 1000


def fuzzed(name: str, /, **strategies: st.SearchStrategy) -> Callable:
    """Run a test `case(folder, …)` on as many examples as CASES says, in a child process that cannot escape."""
    options = settings(
        max_examples=CASES[name],
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    def decorate(case: Callable) -> Callable:
        def test(tmp_path):
            folder, marker = tmp_path / "files", tmp_path / "executed"
            folder.mkdir()
            bystander = tmp_path / "bystander"
            bystander.write_text("must stay as it is")
            ran, log = _in_child(options(given(**strategies)(_each(case, folder, marker))), tmp_path / "last")
            assert ran == 0, f"ended with {ran}: {log}"
            assert not marker.exists() and bystander.read_text() == "must stay as it is"
            assert {path.name for path in tmp_path.iterdir()} == {"files", "bystander", "last"}

        test.__name__, test.__doc__ = case.__name__, case.__doc__
        return test

    return decorate


def _each(case: Callable, folder: Path, marker: Path) -> Callable:
    def example(**drawn) -> None:
        LAST.seek(0)
        LAST.truncate()
        LAST.write(repr(drawn)[:3000])
        LAST.flush()
        signal.alarm(SECONDS_EACH)
        case(folder, marker, **drawn)
        signal.alarm(0)

    return example


LAST: io.TextIOBase


def _in_child(work: Callable[[], None], last: Path) -> tuple[int, str]:
    """(exit code, what went wrong) of `work` in a forked child."""
    global LAST
    with tempfile.TemporaryFile("w+") as out:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                LAST = open(last, "w", encoding="utf-8", errors="backslashreplace")
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                limit(MEMORY)
                work()
                code = 0
            except BaseException:
                out.write(traceback.format_exc()[-6000:])
            finally:
                out.flush()
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        return status, out.read() or last.read_text(encoding="utf-8", errors="replace")


@st.composite
def damage(draw) -> Callable[[bytes], bytes]:
    """A way to damage bytes: cut, change, insert, double or remove, one to four times."""
    in_place = ["change", "flip", "flip"]
    kinds = draw(st.sampled_from([in_place, ["cut", "insert", "double", "remove", *in_place]]))
    step = st.tuples(st.sampled_from(kinds), st.floats(0, 1), st.binary(min_size=1, max_size=12))
    return _Damage(draw(st.lists(step, min_size=1, max_size=4)))


class _Damage:
    def __init__(self, steps: list[tuple[str, float, bytes]]) -> None:
        self.steps = steps

    def __repr__(self) -> str:
        return repr(self.steps)

    def __call__(self, data: bytes) -> bytes:
        for kind, where, junk in self.steps:
            at = int(where * len(data))
            n = 8 * len(junk)
            if kind == "cut":
                data = data[:at]
            elif kind == "change":
                data = data[:at] + junk + data[at + len(junk) :]
            elif kind == "insert":
                data = data[:at] + junk + data[at:]
            elif kind == "double":
                data = data[: at + n] + data[at:]
            elif kind == "remove":
                data = data[:at] + data[at + n :]
            elif at < len(data):
                data = data[:at] + bytes([data[at] ^ (1 << junk[0] % 8)]) + data[at + 1 :]
        return data


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=4),
    max_leaves=8,
)
words = st.sampled_from(
    ["apot", "stream", "layer_sync", "frozen", "per_step", "reference", "auto", "xstart", "fixedsmall"]
)
numbers = st.integers(-2, 70) | st.floats(0, 1) | st.sampled_from([32, 1000, 4096, 2**31, 2**53, 1e300])
likely = numbers | numbers | words | st.booleans() | st.lists(st.integers(0, 70), max_size=5) | plain
WHOLE: dict[str, bytes] = {}


def whole(name: str, make: Callable[[Path], object], folder: Path) -> bytes:
    """The bytes of an undamaged file, made once."""
    if name not in WHOLE:
        path = folder / f"whole {name}"
        make(path)
        WHOLE[name] = path.read_bytes()
        path.unlink()
    return WHOLE[name]


@fuzzed(
    "checkpoint bytes",
    how=damage(),
    source=st.sampled_from(["valid", "command", "memory by bytearray", "overlapping", "packed", "two tables"]),
)
def test_damaged_checkpoints(folder, marker, how, source):
    """Bytes of valid and of malicious checkpoints, damaged."""

    def make(path):
        save_valid(path) if source == "valid" else CHECKPOINTS[source](path, marker)

    path = folder / "a.pt"
    path.write_bytes(how(whole(source, make, folder)))
    refusal(lambda: checkpoint.load(path, bit=2))


@fuzzed("checkpoint pickles", how=damage(), source=st.sampled_from(["valid", "command", "hidden methods"]))
def test_damaged_pickles_in_sound_checkpoints(folder, marker, how, source):
    """The pickle alone is damaged: the archive around it is sound, so that every opcode is reached."""
    path = folder / "a.pt"
    save_valid(path) if source == "valid" else CHECKPOINTS[source](path, marker)
    repacked(path, lambda name, data: how(data) if name.endswith("data.pkl") else data)
    refusal(lambda: checkpoint.load(path, bit=2))


TOP = ("kind", "format", "step", "config", "stage", "source", "x_T")
UNET = ("in_channels", "image_size", "ch", "ch_mult", "num_res_blocks", "dropout", "bits", "weight_bits", "norm_groups")
UNET += ("weight_quant", "diffusion_steps", "spike_driven")
DIFFUSION = ("diffusion_steps", "beta_1", "beta_T", "mean_type", "var_type")
SPIKING = ("schedule", "signed", "stream_norm", "if_neuron", "settle_steps", "burst")


@fuzzed(
    "checkpoint values",
    top=st.just({}) | st.dictionaries(st.sampled_from(TOP), plain, max_size=1),
    unet=st.dictionaries(st.sampled_from(UNET), likely, max_size=2),
    diffusion=st.dictionaries(st.sampled_from(DIFFUSION), likely, max_size=2),
    spiking=st.dictionaries(st.sampled_from(SPIKING), likely, max_size=2),
    entry=st.none() | st.none() | st.tuples(st.integers(0, 40), plain),
    kind=st.sampled_from(["ann", "snn"]),
)
def test_checkpoints_with_other_values(folder, marker, top, unet, diffusion, spiking, entry, kind):
    """A sound file with settings of any type and value; an entry of the weights may be anything as well."""
    content = payload(kind=kind)
    content["config"] = {
        "unet": content["config"]["unet"] | unet,
        "diffusion": content["config"]["diffusion"] | diffusion,
        "spiking": spiking,
    }
    if entry:
        names = sorted(content["ema_model"])
        content["ema_model"][names[entry[0] % len(names)]] = entry[1]
    path = folder / "a.pt"
    torch.save(content | top, path)
    loaded: list = []
    refusal(lambda: loaded.append(checkpoint.load(path, bit=2 if "config" in top else None)))
    for found in loaded:  # whatever passes must be a network that runs
        net = found.net.float()
        x = torch.zeros(1, net.in_channels, *net.image_size)
        if max(net.image_size) <= 64:
            net(x, torch.zeros(1))


@fuzzed("arrays", how=damage(), source=st.sampled_from(["statistics", "packed statistics", "rasters", "images"]))
def test_damaged_arrays(folder, marker, how, source):
    """Bytes of npz files, damaged, before every reader."""
    make = {
        "statistics": lambda path: _npz(path, np.savez, **stats_arrays()),
        "packed statistics": lambda path: _npz(path, np.savez_compressed, **stats_arrays()),
        "rasters": write_rasters,
    }[source]
    path = folder / "a.npz"
    path.write_bytes(how(whole(source, make, folder)))
    for reader in (read_stats, load_rasters):
        refusal(lambda reader=reader: reader(path))


def _npz(path: Path, save: Callable, **arrays: object) -> None:
    with open(path, "wb") as file:
        save(file, **arrays)


dtypes = st.sampled_from(["f8", "f4", "f2", "i8", "u1", "?", "c16", "U3", "S3", "M8[s]", "V4", ">f8", "O"])


@fuzzed(
    "array contents",
    name=st.sampled_from(["mu", "sigma", "count", "extractor", "layers", "neurons", "window", "t", "modes"]),
    dtype=dtypes,
    shape=st.lists(st.integers(0, 5), max_size=5),
)
def test_arrays_of_other_types_and_shapes(folder, marker, name, dtype, shape):
    """Sound npz files in which one array has any type and shape."""
    path = folder / "a.npz"
    write_rasters(path)
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored) | stats_arrays()
    npz_of(path, **arrays | {name: np.zeros(shape, dtype)})
    for reader in (read_stats, load_rasters):
        refusal(lambda reader=reader: reader(path))


@fuzzed(
    "images",
    how=damage(),
    kind=st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"]),
    packed=st.booleans(),
    size=st.sampled_from([(8, 8), (1, 33), (64, 48)]),
)
def test_damaged_images(folder, marker, how, kind, packed, size):
    """Bytes of pictures, damaged."""
    options = {"compression": "tiff_deflate"} if packed and kind == "TIFF" else {}
    path = folder / f"x.{kind.lower()}"
    path.write_bytes(how(encoded(kind, size, **options)))
    refusal(lambda: decode_image(path))
    refusal(lambda: check_image(path))


NAMES = ("bit", "T", "ch", "ch_mult", "lr", "logdir", "seed", "train", "flagfile", "settle_steps", "ft_learn", "bogus")
lines = st.one_of(
    st.text(max_size=30),
    st.builds("--{}={}".format, st.sampled_from(NAMES), st.text(max_size=12) | st.integers().map(str)),
    st.builds("--{}={}".format, st.sampled_from(NAMES), st.floats().map(str)),
    st.builds("--no{}".format, st.sampled_from(NAMES)),
    st.just("--flagfile={self}"),
)


@fuzzed("flagfiles", content=st.binary(max_size=200) | st.lists(lines, max_size=8))
def test_flagfiles(folder, marker, content):
    """Junk, and lines that look like flags, through the scripts' own parser: parsed, or one line and exit code 2."""
    path = folder / "flags.txt"
    if isinstance(content, list):
        content = "\n".join(content).replace("{self}", str(path)).encode("utf-8", "surrogatepass")
    path.write_bytes(content)
    if "bit" not in flags.FLAGS:
        flags.define()
    flags.FLAGS.unparse_flags()
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            flags._parse(["script.py", f"--flagfile={path}"])
            from_flags.unet_config(3), from_flags.diffusion_config()
        except SystemExit as stop:
            assert stop.code == 2
            text = err.getvalue()
            assert text.startswith("error: ") and text.count("\n") == 1 and text[:-1].isprintable(), text
        except flags.UserError as error:
            assert str(error).isprintable()


@fuzzed(
    "run folders",
    file=st.sampled_from(["log.jsonl", "gap.json", "cost.json", "snn_eval.txt", "SNN_2bit_ft/finetune.json"]),
    content=plain | damage(),
)
def test_run_folders(folder, marker, file, content):
    """A report's inputs, damaged or replaced."""
    run = folder / "run"
    if not run.exists():
        write_run(run)
    original = WHOLE.setdefault(file, (run / file).read_bytes() if (run / file).exists() else b"{}\n")
    damaged = content(original) if isinstance(content, _Damage) else json.dumps(content).encode()
    (run / file).write_bytes(damaged)
    found = collect(run)
    assert all(note.isprintable() for note in found.notes)
    (run / file).write_bytes(original)


def test_the_scripts_folder_is_untouched():
    """None of the above wrote beside the sources."""
    assert not (ROOT / "executed").exists() and "a.pt" not in tree(ROOT / "tests" / "hostile") and sys.argv
