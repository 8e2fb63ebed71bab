"""Spike rasters and fine-tuning runs on the page: shown as recorded, read with suspicion."""

import json
import os
import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from ann2snn.config import SpikingConfig
from ann2snn.convert.raster import Raster
from ann2snn.report.collect import collect
from ann2snn.report.finetuned import blocks_table, duration, finetuned_table
from ann2snn.report.html import page, raster_caption
from ann2snn.report.raster import layer_label, raster_chart, shown_rows
from ann2snn.report.summary import summary_notes, verdict
from tests.report.run_folder import STREAM, score_line, write_json, write_rasters

UNSIGNED = STREAM | {"signed": False}


def write_tuned(logdir: Path, folder: str, age: float = 0, **changes: object) -> None:
    """A file as the fine-tuning stage writes it, `age` seconds old."""
    blocks = [
        {"block": name, "gap_before": 0.5, "gap_after": 0.25, "best_step": 7, "steps": 10, "seconds": 30.0}
        for name in ("downblocks.0", "tail", "network")
    ]
    identity = {"method": "bptt", "ft_steps": 10, "lr": 1e-4, "learn": ["weights", "charges"], "granularity": "channel"}
    identity |= {"inputs": "sampler", "source": "trained000000000", "spiking": UNSIGNED}
    content = {"identity": identity, "prediction_gap": [0.08, 0.06, 0.05, 0.03], "best_gap": 0.02, "blocks": blocks}
    path = logdir / folder / "finetune.json"
    write_json(path, content | changes)
    os.utime(path, (2_000_000_000 - age, 2_000_000_000 - age))


def cells(source: str) -> list[list[str]]:
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", source)]


def test_every_run_has_its_row_and_its_blocks_newest_first(logdir):
    write_tuned(logdir, "SNN_2bit_ft_bptt")
    write_tuned(logdir, "SNN_2bit_ft_two", age=60, best_gap=0.04)
    run = collect(logdir)
    header, rows, _ = finetuned_table(run.finetunings)
    assert [row[0] for row in rows] == ["SNN_2bit_ft_bptt", "SNN_2bit_ft_two", "SNN_2bit_ft"]
    told = dict(zip(header, rows[0], strict=True))
    assert told["method"] == "bptt" and told["learned"] == "weights, charges" and told["signed"] == "no"
    assert (told["gap before"], told["gap after"], told["after / before"]) == ("0.08", "0.02", "0.25")
    assert told["time"] == "1 min 30 s"
    header, rows, _ = blocks_table(run.finetunings[0])
    assert rows[2] == ["network", "0.5", "0.25", "0.50", "7", "10", "30", "0.03"]
    shown = cells(page(run))
    assert rows[0] in shown and shown.index(finetuned_table(run.finetunings)[1][0]) < shown.index(rows[0])
    assert page(run).count("<details open>") == 1 and not run.notes


def test_older_files_with_fewer_fields_are_read(logdir):
    [tuned] = collect(logdir).finetunings
    assert tuned.best_gap == 0.05 and tuned.source == "trained000000000" and tuned.signed is None
    assert finetuned_table([tuned])[1] == [["SNN_2bit_ft", *["–"] * 7, "0.07", "0.05", "0.71", "–"]]
    assert blocks_table(tuned)[1][1] == ["downblocks.1", "0.05", "0.03", "0.60", "–", "–", "–", "0.05"]


def test_a_prediction_gap_too_few_or_too_many_costs_only_itself(logdir):
    write_tuned(logdir, "SNN_2bit_ft", prediction_gap=[0.08])
    write_tuned(logdir, "SNN_2bit_ft_b", age=9, prediction_gap=[0.1] * 9)
    few, many = collect(logdir).finetunings
    assert few.prediction_gap == 0.08 and all(block.prediction_gap != block.prediction_gap for block in few.blocks)
    assert len(many.blocks) == 3 and [block.prediction_gap for block in many.blocks] == [0.1] * 3


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"prediction_gap": [], "blocks": []}',
        '{"prediction_gap": "ab", "blocks": []}',
        '{"prediction_gap": [1], "blocks": {}}',
        '{"prediction_gap": [1], "blocks": [7]}',
        '{"prediction_gap": [1], "blocks": [], "identity": 3}',
    ],
)
def test_a_damaged_run_is_noted_and_the_others_stay(logdir, content):
    (logdir / "SNN_2bit_ft_new").mkdir()
    (logdir / "SNN_2bit_ft_new" / "finetune.json").write_text(content)
    run = collect(logdir)
    assert [tuned.folder for tuned in run.finetunings] == ["SNN_2bit_ft"]
    assert len(run.notes) == 1 and "finetune.json" in run.notes[0]


def test_hostile_names_are_text(logdir):
    hostile = "<script>alert(1)</script>"
    block = {"block": hostile, "gap_before": 1, "gap_after": 1e999, "steps": hostile, "best_step": 1e999, "seconds": []}
    identity = {"method": hostile, "learn": [hostile, {"a": [hostile]}], "lr": {}, "spiking": hostile, "source": 1}
    write_tuned(logdir, "SNN_<img src=x>_ft", blocks=[block], identity=identity)
    source = page(collect(logdir))
    assert source.count("<script") == 1 and "<img src=x" not in source and "&lt;script&gt;" in source


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.25, "0.25 s"), (59.4, "59.4 s"), (61, "1 min 01 s"), (3599.9, "1 h 00 min"), (7384, "2 h 03 min"), (-1, "–")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_infinite_settings_are_survived(logdir):
    text = json.dumps(STREAM).replace('"settle_steps": 0', '"settle_steps": 1e999')
    (logdir / "gap.json").write_text(f'{{"reports": [{{"label": "x", "blocks": [], "spiking": {text}}}]}}')
    assert "gap.json: a malformed report is left out" in collect(logdir).notes


def test_the_raster_on_the_page_says_what_it_shows(logdir):
    run = collect(logdir)
    caption = raster_caption(run.rasters)
    assert "t = 473" in caption and "T = 3 steps" in caption and "layer 4 were drawn" in caption
    assert caption in page(run) and 'data-kind="raster"' in page(run)


def test_bars_and_data_stand_where_the_spikes_are():
    """Black bars for spikes, red ones for those taken back; each neuron's row tells its events and potentials."""
    events = torch.zeros(2, 3, 4, dtype=torch.int8)
    events[0, 1, 0] = 1  # the busiest of its layer: first row
    events[1, 0, 3] = 1  # sorted behind the next
    events[1, 2, 1:3] = torch.tensor([1, -1])
    neurons, potentials = torch.arange(6).view(2, 3), torch.arange(24).view(2, 3, 4).half() / 8
    raster = Raster(SpikingConfig("stream"), ("a.1", "b.1"), neurons, events, 3, 0.0, potentials)
    drawn, header, rows, _ = raster_chart([raster])
    [panel] = ElementTree.fromstring(drawn).iterfind(".//*[@data-panel]")
    found = {row.get("data-neuron"): row for row in panel.iterfind("*[@data-neuron]")}
    assert list(found) == [f"{name}, neuron {n}" for name, n in zip("aaabbb", (1, 0, 2, 5, 3, 4), strict=True)]
    assert found["b, neuron 5"].get("data-events") == "0,1,-1,0"
    assert found["b, neuron 5"].get("data-potentials") == "250,262,275,288"  # hundredths of 20/8 … 23/8
    left, unit = float(panel.get("data-left")), float(panel.get("data-unit"))

    def steps(neuron: str, colour: str) -> list[int]:
        bars = [path.get("d") for path in found[neuron] if path.get("class") == f"spikes {colour}"]
        starts = re.findall(r"M([0-9.]+) ", "".join(bars))
        return [int((float(start) - left) // unit) + 1 for start in starts]

    assert [steps(neuron, "ink") for neuron in found] == [[1], [], [], [2], [4], []]
    assert [steps(neuron, "red") for neuron in found] == [[], [], [], [3], [], []]
    assert header == ["layer", "neurons", "stream: spikes", "stream: negative"]
    assert rows == [["a", "3", "1", "0"], ["b", "3", "3", "1"]]


def test_neurons_are_sorted_and_thinned_evenly():
    generator = torch.Generator().manual_seed(0)
    events = torch.randint(-1, 2, (60, 24, 7), generator=generator).numpy()
    rows = shown_rows(events)
    spikes = np.abs(events).sum(2)
    shown = np.take_along_axis(spikes, rows, 1)
    assert shown.shape == (60, 6) and (np.diff(shown, axis=1) <= 0).all()
    assert (shown[:, 0] == spikes.max(1)).all() and (shown[:, -1] == spikes.min(1)).all()
    assert shown_rows(events[:2]).shape == (2, 24) and shown_rows(events[:, :3]).shape == (60, 3)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("downblocks.0.block1.1", "downblocks.0.block1"),
        ("tail.1", "tail"),
        ("12", "12"),
        ("a\x1b", "a\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_layer_labels(name, label):
    assert layer_label(name) == label


DAMAGE = {
    "layers": [np.array(["a"]), np.array(3), np.array([1, 2]), np.array([], dtype="U1")],
    "neurons": [np.zeros((2, 4), np.float64), np.zeros(2, np.int64), np.zeros((3, 4), np.int64)],
    "window": [np.int64(0), np.int64(4), np.float64(3), np.array([3])],
    "t": [np.float64("nan"), np.array([1.0]), np.array("x")],
    "modes": [
        np.array(["{"]), np.array(["{}"]), np.array([1]), np.array([], dtype="U1"), np.array(["[" * 9000]),
        *(np.array([json.dumps(STREAM | change)]) for change in ({"settle_steps": 1e999}, {"signed": "no"})),
        np.array([json.dumps(STREAM)] * 3),  # and events of two
    ],
    "events_0": [
        np.zeros((2, 4, 3), np.int16), np.full((2, 4, 3), 2, np.int8), np.zeros((2, 5, 3), np.int8),
        np.zeros((2, 4, 2), np.int8), np.zeros((2, 4), np.int8),
        np.array([{"a": 1}], dtype=object),  # a pickle
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "index"), [(name, i) for name, values in DAMAGE.items() for i in range(len(values))])
def test_a_malformed_raster_is_a_note(logdir, name, index):
    path = logdir / "raster.npz"
    with np.load(path) as arrays:
        content = dict(arrays)
    for changed in (content | {name: DAMAGE[name][index]}, {k: v for k, v in content.items() if k != name}):
        np.savez(path, **changed)
        run = collect(logdir)
        assert not run.rasters and run.notes == ["raster.npz cannot be read as spike rasters and is left out"]


def test_a_raster_that_unpacks_to_too_much_is_refused_unread(logdir):
    with zipfile.ZipFile(logdir / "raster.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("layers.npy", bytes(70_000_000))
    assert "raster.npz" in collect(logdir).notes[0]


def test_hostile_layer_names_and_endless_settling_are_drawn(tmp_path):
    write_rasters(tmp_path / "raster.npz", ("<script>$\\frac{", "\x1b[31m" * 50))
    [_, settled] = collect(tmp_path).rasters
    events = torch.ones(2, 4, 5000, dtype=torch.int8)
    long = Raster(settled.spiking, settled.layers, settled.neurons, events, 3, 1.0)
    drawn, *_ = raster_chart([long])
    assert len(drawn) < 100_000 and "<script" not in drawn and ElementTree.fromstring(drawn).tag.endswith("svg")


def test_real_images_have_no_say_in_how_images_were_sampled(logdir):
    real = score_line("real images (fashion_mnist, test)", None, 1.5)
    for name in ("sampler", "sampler_steps", "eta", "clip_x0", "var_type", "seed", "checkpoint", "weights", "bits"):
        del real[name]
    with open(logdir / "snn_eval.txt", "a", encoding="utf-8") as file:
        file.write(json.dumps(real) + "\n")
    assert not summary_notes(collect(logdir)) and "FD_efficientnet_lite0 on 5,000" in verdict(collect(logdir))
    with open(logdir / "snn_eval.txt", "a", encoding="utf-8") as file:
        file.write(json.dumps(real | {"count": 10}) + "\n")
    [note] = summary_notes(collect(logdir))
    assert "image count" in note and "sampler" not in note
