"""The page of a directly trained spiking network: its own words, no gap, and its fine-tunings beside it."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from ann2snn.config import DirectSpiking
from ann2snn.convert.raster import Raster
from ann2snn.report.collect import collect
from ann2snn.report.direct import MOST_RUNS, direct_of_flags
from ann2snn.report.html import page
from ann2snn.report.raster import raster_chart
from ann2snn.report.summary import summary_notes, summary_table, summary_text, verdict
from ann2snn.run.rasters import save_rasters
from tests.report.run_folder import score_line, write_json, write_lines, write_picture, written_report
from tests.report.test_page import HOSTILE, WRONG, Page

SDDPM = DirectSpiking("sddpm", 4)
SDM = DirectSpiking("sddpm", 8, tsm=True)
INPUTS = ("log.jsonl", "flagfile.txt", "cost.json", "snn_eval.txt", "raster.npz", "images", "sample", "generated")


def line(direct: DirectSpiking, fd: float, network: str = "trained", **changes: object) -> dict:
    """A line of scores as evaluate.py writes it."""
    settings = {key: value for key, value in direct.to_dict().items() if key != "arch"}
    more = {"arch": direct.arch, "direct": settings, "bits": 32, "time_steps": f"{direct.spike_steps} (+ 51 where …)"}
    return score_line(network, None, fd, **more | changes)


def cost_file(direct: DirectSpiking, spikes: float, told: bool = True) -> dict:
    """What the cost account of a directly trained network leaves: one report, no ANN. told: how the network ran."""
    energy = {"compute_pj": 5e6, "total_pj": 6e6}
    layers = [{"name": "conv", "kind": "conv", "inputs": "real", "mac": 1000.0}]
    one = {
        "label": direct.label, "spiking": direct.to_dict() if told else None, "bits": 32, "layers": layers,
        "latency_steps": direct.spike_steps, "latency_steps_delayed": direct.spike_steps + 51,
        "totals": {"spikes": spikes, "firing_rate": 0.125, "ac": 4e6, "mac": 1e6, "additions": 9.0, "updates": 7.0},
        "energy": {way: {"fp32": energy, "int8": energy} for way in ("counted", "all_mac")},
    }  # fmt: skip
    return {"images": 2, "times": 4, "calls_per_image": 50, "reports": [one]}


def write_part(folder: Path, direct: DirectSpiking, spikes: float) -> None:
    """What a training, or a fine-tuning in its own folder, leaves."""
    folder.mkdir(exist_ok=True)
    for name in ("ckpt.pt", "best.pt", "trained_snn.pt"):
        (folder / name).write_bytes(b"not looked at")
    write_lines(folder / "log.jsonl", [{"stage": "train", "step": i, "loss": 1 / (i + 1)} for i in range(30)])
    write_json(folder / "cost.json", cost_file(direct, spikes))
    events = torch.zeros(2, 4, direct.spike_steps, dtype=torch.int8)
    events[:, 1, 2] = 1
    neurons = torch.arange(4).expand(2, 4).clone()
    layers = ("downblocks.0.neuron1", "upblocks.1.neuron2")
    save_rasters(folder / "raster.npz", [Raster(direct, layers, neurons, events, direct.spike_steps, 473.0)])
    write_picture(folder / "sample" / "20.png", (42, 22))
    write_picture(folder / "images" / "SDDPM_T4.png", (42, 22))


@pytest.fixture
def logdir(tmp_path) -> Path:
    """A trained SDDPM that was scored while it was trained and after, with threshold guidance too."""
    folder = tmp_path / "my_run"
    write_part(folder, SDDPM, 123_456.0)
    flags = "--arch=sddpm\n--bit=8.0\n--notsm\n--timestep=4\n--train\n"
    (folder / "flagfile.txt").write_text(flags)
    while_training = [{"step": step, "FID": 40.0 - step, "FID_EMA": 30.0 - step} for step in (10, 20)]
    guided = line(DirectSpiking("sddpm", 4, 0.995), 20.0)
    write_lines(folder / "snn_eval.txt", [*while_training, line(SDDPM, 21.0), guided])
    images = folder / "generated" / "sddpm_4steps_ddim50_seed0"
    for index in range(4):
        write_picture(images / f"{index:06}.png", (8, 8), 10 * index)
    write_json(images / "settings.json", line(SDDPM, 0.0))
    return folder


@pytest.fixture
def tuned(logdir) -> Path:
    """The same with a fine-tuning, one score of which is in its own folder."""
    write_part(logdir / "SDM_8T", SDM, 654_321.0)
    write_lines(logdir / "SDM_8T" / "snn_eval.txt", [{"step": 30, "FID_EMA": 15.5}, line(SDM, 19.0, network="sdm")])
    return logdir


def headings(source: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", source)


def test_the_page_has_what_there_is_and_misses_nothing(logdir):
    source = written_report(logdir).read_text(encoding="utf-8")
    assert headings(source) == ["Summary", "Settings", "Training", "Samples", "Scores", "Spikes", "Cost"]
    shown = Page(source).shown
    assert "Not everything" not in shown and collect(logdir).notes == []
    for word in ("ANN-to-SNN", "quantized", "converted", "of the ANN", "layer_sync", "settl", "negative spike", "bits"):
        assert word not in shown, word
    for word in ("Spiking network report · SDDPM · threshold 1 · S = 4 time steps", "SDDPM 4 steps, all MAC", "4 / 55"):
        assert word in shown, word
    assert {path.name for path in (logdir / "figures").iterdir()} == {"loss.svg", "raster.svg", "samples.png"}


def test_the_summary_calls_networks_by_architecture_threshold_and_steps(logdir):
    run = collect(logdir)
    header, rows = summary_table(run)
    assert header == [
        "network",
        "threshold",
        "steps per call",
        "spikes per image and call",
        "FD_efficientnet_lite0 (images)",
    ]
    assert rows == [
        ["SDDPM", "0.995", "4", "–", "20.00 (5,000)"],
        ["SDDPM", "1", "4", "123,456", "21.00 (5,000)"],
    ]
    assert summary_notes(run) == [] and "123,456" in summary_text(run)
    scores = "SDDPM 4 steps, threshold 0.995 20.00, SDDPM 4 steps 21.00."
    assert verdict(run) == f"SDDPM 4 steps: FD_efficientnet_lite0 on 5,000 images: {scores}"
    assert (run.bits, run.spike_steps, run.direct) == (None, 4, SDDPM)
    assert run.training_scores == {10: {"FID": 30.0, "FID_EMA": 20.0}, 20: {"FID": 20.0, "FID_EMA": 10.0}}


def test_a_fine_tuning_with_tsm_has_its_section_and_its_row(tuned):
    source = written_report(tuned).read_text(encoding="utf-8")
    assert headings(source)[-1] == "Fine-tuning with TSM: SDM_8T"
    section = Page(source[source.index("<h2>Fine-tuning with TSM") :]).text
    for word in ("Training loss", "step 20", "15.50", "Spike raster", "SDM 8 steps, all MAC", "8 / 59"):
        assert word in section, word
    assert [row for row in summary_table(collect(tuned))[1] if row[0] == "SDM"] == [
        ["SDM", "1", "8", "654,321", "19.00 (5,000)"]
    ]
    assert {"loss_SDM_8T.svg", "raster_SDM_8T.svg"} < {path.name for path in (tuned / "figures").iterdir()}
    assert "Not everything" not in source and "SDM 8 steps 19.00" in verdict(collect(tuned))


def test_the_folder_of_a_fine_tuning_is_a_run_of_its_own(tuned):
    (tuned / "SDM_8T" / "raster.npz").unlink()
    (tuned / "SDM_8T" / "cost.json").unlink()
    run = collect(tuned / "SDM_8T")
    assert run.direct == SDM and [row[0] for row in summary_table(run)[1]] == ["SDM"]
    assert "SDM" in page(run)


@pytest.mark.parametrize("name", INPUTS)
def test_any_input_may_be_missing(tuned, name):
    for folder in (tuned, tuned / "SDM_8T"):
        path = folder / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    run = collect(tuned)
    assert run.direct == SDDPM and "Not everything" not in page(run)
    assert [row[0] for row in summary_table(run)[1]][:1] == ["SDDPM"]
    assert [row[0] for row in summary_table(run)[1]][-1] == "SDM"


@pytest.mark.parametrize("name", ["flagfile.txt", "cost.json", "snn_eval.txt", "raster.npz", "generated"])
def test_any_input_is_enough_to_tell_the_network(logdir, tmp_path, name):
    only = tmp_path / "only"
    only.mkdir()
    shutil.copytree(logdir / name, only / name) if (logdir / name).is_dir() else shutil.copy(logdir / name, only)
    run = collect(only)
    assert run.direct == SDDPM and "gap" not in Page(page(run)).shown.lower()


def test_an_account_that_does_not_say_how_the_network_ran_is_shown(logdir):
    write_json(logdir / "cost.json", cost_file(SDDPM, 123_456.0, told=False))
    run = collect(logdir)
    shown = Page(page(run)).text
    assert "SDDPM 4 steps, all MAC" in shown and "123 k" in shown and not run.notes
    assert [row[3] for row in summary_table(run)[1]] == ["–", "–"]  # spikes of a network that is not named


def test_an_account_without_energies_is_survived(logdir):
    content = cost_file(SDDPM, 123_456.0)
    content["reports"][0]["energy"] = {}
    write_json(logdir / "cost.json", content)
    assert [row[3] for row in summary_table(collect(logdir))[1]] == ["–", "–"] and page(collect(logdir))


@pytest.mark.parametrize("change", [{"direct": 3}, {"direct": {}}, {"arch": "<b>"}, {"direct": {"spike_steps": 1e999}}])
def test_malformed_settings_are_a_note(logdir, change):
    with open(logdir / "snn_eval.txt", "a", encoding="utf-8") as file:
        file.write(json.dumps(line(SDDPM, 5.0) | change) + "\n")
    run = collect(logdir)
    assert run.notes == ["snn_eval.txt: a line without usable settings is left out"] and len(run.scores) == 2


@pytest.mark.parametrize("content", WRONG, ids=range(len(WRONG)))
def test_any_content_is_survived(tuned, content):
    shutil.rmtree(tuned / "generated")
    for name in ("cost.json", "snn_eval.txt", "raster.npz", "log.jsonl", "flagfile.txt"):
        for folder in (tuned, tuned / "SDM_8T"):
            (folder / name).write_bytes(content.encode("latin-1"))
        assert "my_run" in Page(page(collect(tuned))).text, name


def test_hostile_strings_are_text(tuned):
    shutil.copytree(tuned / "SDM_8T", tuned / "SDM_8T<script>")  # no name that the program gives
    write_lines(tuned / "SDM_8T" / "snn_eval.txt", [line(SDM, 1.0, network=HOSTILE, notes=[HOSTILE])])
    content = cost_file(SDM, 1.0)
    content["reports"][0]["label"] = HOSTILE
    write_json(tuned / "SDM_8T" / "cost.json", content)
    shown = Page(page(collect(tuned)))
    assert [tag for tag, _ in shown.tags].count("script") == 1 and len(collect(tuned).tsm_runs) == 1


def test_folders_that_lead_in_circles_end(tuned):
    (tuned / "SDM_8T" / "SDM_2T").symlink_to(tuned, target_is_directory=True)
    (tuned / "SDM_3T").symlink_to(tuned, target_is_directory=True)
    assert len(collect(tuned).tsm_runs) == 2


def test_many_fine_tunings_are_bounded(logdir):
    for index in range(MOST_RUNS + 3):
        folder = logdir / f"SDM_4T_{index:02}"
        folder.mkdir()
        write_lines(folder / "log.jsonl", [{"stage": "train", "step": 0, "loss": 1.0}])
    run = collect(logdir)
    assert len(run.tsm_runs) == MOST_RUNS and len(run.notes) == 1


def test_networks_and_images_are_told_apart_by_how_they_ran(logdir):
    assert len(collect(logdir).scores) == 2
    write_lines(logdir / "snn_eval.txt", [line(SDDPM, 21.0), line(SDDPM, 22.0), line(SDM, 23.0)])
    assert [score.values["FD_efficientnet_lite0"] for score in collect(logdir).scores] == [22.0, 23.0]
    assert "SDDPM, 4 steps, threshold 1" in {found.mode.label for found in collect(logdir).image_sets}


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("--arch=sddpm\n", SDDPM),  # the architecture's own defaults
        ("--arch=fsddim\n--threshold=0.5\n", DirectSpiking("fsddim", 8, 0.5)),
        ("--arch=sddpm\n--timestep=8\n--tsm\n", SDM),
        ("--arch=unet\n--timestep=8\n", None),
        ("--arch=attention\n", None),
        ("--timestep=8\n", None),
        ("--arch=sddpm\n--timestep=many\n", None),
        ("--arch=sddpm\n--timestep=99999\n", None),
    ],
)
def test_flags_tell_the_network(text, network):
    assert direct_of_flags(text) == network


def test_the_raster_of_a_direct_network_is_titled_by_it_and_has_no_negative_spikes(logdir):
    drawn, header, _, key = raster_chart(collect(logdir).rasters)
    words = re.findall(r"<text[^>]*>(.*?)</text>", drawn)
    assert "SDDPM 4 steps" in words and "time step" in words
    assert words[:2] == ["downblocks.0.neuron1", "upblocks.1.neuron2"]
    assert [label for label, *_ in key] == ["spike"] and header == ["layer", "neurons", "SDDPM 4 steps: spikes"]
