"""The numbers: those of the files, the newest, beside what they may be compared with."""

import io
import json
import re

import pytest
from PIL import Image

from ann2snn.report.collect import collect
from ann2snn.report.grids import sample_groups
from ann2snn.report.html import page
from ann2snn.report.summary import summary_notes, summary_table, summary_text, verdict
from tests.report.run_folder import (
    AUTO,
    LAYER_SYNC,
    STREAM,
    account,
    gap_file,
    report,
    score_line,
    write_costs,
    write_image_set,
    write_json,
    write_lines,
)

FULL_TABLE = [
    ["quantized ANN", "–", "–", "reference", "–", "21.00 (5,000)"],
    ["converted SNN", "layer_sync", "3 × depth", "0", "1,111", "22.00 (5,000)"],
    ["converted SNN", "stream", "3", "0.0654", "2,222", "33.00 (5,000)"],
    ["converted SNN", "stream +auto", "3 + 2", "3.2e-16", "3,333", "–"],
    ["fine-tuned SNN", "stream", "3", "0.0321", "4,444", "24.00 (5,000)"],
]


def rows(logdir) -> list[list[str]]:
    return summary_table(collect(logdir))[1]


def append(logdir, line: dict) -> None:
    with open(logdir / "snn_eval.txt", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def test_table_has_the_numbers_of_the_files(logdir):
    assert rows(logdir) == FULL_TABLE


def test_page_and_terminal_show_the_same_table(logdir):
    run = collect(logdir)
    source = page(run)
    body = re.search(r"<tbody>(.*?)</tbody>", source, flags=re.S)[1]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]
    assert [[re.sub(r"<.*?>", "", cell) for cell in row] for row in cells] == FULL_TABLE
    assert all(cell in summary_text(run) for row in FULL_TABLE for cell in row)


def test_carried_levels_have_a_row_and_a_sentence_of_their_own(logdir):
    """With their own spikes, energy and score, which are not those of layer_sync from rest."""
    write_costs(logdir)
    append(logdir, score_line("converted", LAYER_SYNC, 23.0, sampler_options={"carry": True}))
    append(logdir, score_line("real images (x, test)", None, 9.0, sampler=None))
    run = collect(logdir)
    header, table = summary_table(run)
    assert header[4:6] == ["spikes per image and call", "int8 energy per call (with memory)"]
    assert table[0] == [*FULL_TABLE[0][:5], "5 µJ (50 µJ)", "21.00 (5,000)"]
    assert table[1] == [*FULL_TABLE[1][:5], "4 µJ (40 µJ)", "22.00 (5,000)"]
    assert table[2] == [
        "converted SNN",
        "layer_sync carried",
        "3 × depth",
        "0",
        "1,000",
        "1 µJ (10 µJ)",
        "23.00 (5,000)",
    ]
    assert table[3][1:6] == ["stream", "3", "0.0654", "2,222", "9 µJ (90 µJ)"] and len(table) == 7
    assert not summary_notes(run)  # carrying is a way to run a network: it does not make scores incomparable
    scores, carried = verdict(run).split(". ")[0], verdict(run).split(". ")[-1]
    assert "layer_sync 22.00, layer_sync carried 23.00" in scores and "real images 9.00" in scores
    assert carried.startswith("With levels carried from call to call layer_sync takes ")
    assert "in int8 a call takes 1 µJ (10 µJ with memory), one of the quantized ANN 5 µJ (50 µJ with memory)" in carried


def test_a_carried_stream_takes_the_mean_of_its_calls_steps(logdir):
    write_costs(logdir)
    content = json.loads((logdir / "carry.json").read_text())
    stream = account("converted stream carried", STREAM, 2.0, 3, carried=True) | {"steps_run": 1.5}
    write_json(logdir / "carry.json", content | {"reports": [*content["reports"][:1], stream], "carry_steps": 2})
    assert ["converted SNN", "stream carried in 2 steps", "1.5 (mean)"] in [row[:3] for row in rows(logdir)]


def test_usual_rows_are_always_there_and_no_tuned_one_where_nothing_was_tuned(tmp_path):
    (tmp_path / "flagfile.txt").write_text("--bit=4\n")
    assert [row[:3] for row in rows(tmp_path)] == [
        ["quantized ANN", "–", "–"],
        ["converted SNN", "layer_sync", "15 × depth"],
        ["converted SNN", "stream", "15"],
        ["converted SNN", "stream +auto", "15 + auto"],
    ]
    assert {cell for row in rows(tmp_path)[1:] for cell in row[3:]} == {"–"}


def test_depth_is_used_where_the_file_tells_it(logdir):
    content = json.loads((logdir / "gap.json").read_text())
    write_json(logdir / "gap.json", content | {"depth": 17})
    assert rows(logdir)[1][2] == "3 × 17"


def test_other_modes_get_their_own_rows(logdir):
    append(logdir, score_line("converted", STREAM | {"settle_steps": 2, "signed": False}, 44.0))
    append(logdir, score_line("converted", STREAM | {"stream_norm": "per_step", "if_neuron": "reference"}, 55.0))
    append(logdir, score_line("trained", None, 66.0, weights="net"))
    schedules = {(row[0], row[1]): row[-1] for row in rows(logdir)}
    assert schedules["converted SNN", "stream +2 unsigned"] == "44.00 (5,000)"
    assert schedules["converted SNN", "stream per-step norm reference neuron"] == "55.00 (5,000)"
    assert schedules["quantized ANN, net weights", "–"] == "66.00 (5,000)"
    assert rows(logdir)[0] == FULL_TABLE[0] and len(rows(logdir)) == 8


def test_newest_line_with_the_same_settings_wins(logdir):
    append(logdir, score_line("converted", STREAM, 7.5, date="later", device="cuda", notes=[]))
    scores = [s.values for s in collect(logdir).scores if s.mode.label == "converted SNN, stream"]
    assert scores == [{"FD_efficientnet_lite0": 7.5}]
    assert rows(logdir)[2][-1] == "7.50 (5,000)"


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": "other"},
        {"count": 64},
        {"seed": 1},
        {"sampler_steps": 20},
        {"reference": "x"},
        {"extractor": "x"},
    ],
    ids=str,
)
def test_other_settings_are_another_score(logdir, change):
    append(logdir, score_line("converted", STREAM, 7.5, **change))
    assert len(collect(logdir).scores) == 5
    assert rows(logdir)[2][-1].startswith("7.50 ")
    noted = any("not comparable" in note for note in summary_notes(collect(logdir)))
    assert noted == ("checkpoint" not in change)


OPTIONS = [{"order": 3}, {"order": 3, "skip": "quadratic"}, {}]


def test_sampler_options_keep_scores_apart_and_tell_them_apart(logdir):
    """Four evaluations of one network that differ in nothing else: four lines, each with its options."""
    first = {"network": "trained", "spiking": None, "fd": 21.0}
    write_lines(logdir / "snn_eval.txt", [score_line(**first)])  # as older lines are: without the field
    for fd, options in zip((31.0, 32.0, 33.0), OPTIONS, strict=True):
        append(logdir, score_line("trained", None, fd, sampler_options=options))
    append(logdir, score_line("trained", None, 34.0, sampler_options={"order": 3}, eta=0.5))
    run = collect(logdir)
    # The newest without options replaces the line from before there were any; the others stay.
    assert [score.values["FD_efficientnet_lite0"] for score in run.scores] == [31.0, 32.0, 33.0, 34.0]
    assert rows(logdir)[0][-1] == "34.00 (5,000)"
    [note] = [note for note in summary_notes(run) if "several ways" in note]
    assert note.startswith("quantized ANN was sampled") and "eta (0.0, 0.5)" in note
    assert "sampler options (order 3, order 3 and skip quadratic, default)" in note
    [table] = re.findall(r"<h2>Scores</h2>.*?<tbody>(.*?)</tbody>", page(run), flags=re.S)
    ways = ["eta 0.0, order 3", "eta 0.0, order 3, skip quadratic", "eta 0.0", "eta 0.5, order 3"]
    assert re.findall(r"<td[^>]*>ddim, 50 steps, (.*?)</td>", table) == ways


def test_rows_sampled_with_other_options_are_not_comparable(logdir):
    append(logdir, score_line("converted", STREAM, 7.5, sampler_options={"order": 3}))
    [note] = [note for note in summary_notes(collect(logdir)) if "not comparable" in note]
    assert "sampler options (default, order 3)" in note and "FD_" not in verdict(collect(logdir))


@pytest.mark.parametrize("options", [None, 3, "x", [1], {"order": {"<b>": "\x1b"}}], ids=str)
def test_malformed_sampler_options_are_shown_as_text_or_not_at_all(logdir, options):
    append(logdir, score_line("converted", STREAM, 7.5, sampler_options=options))
    source = page(collect(logdir))
    assert "7.50" in source and "<b>'" not in source and "\x1b" not in source


def test_layer_sync_scores_count_together_whatever_stream_settings_they_carry(logdir):
    append(logdir, score_line("converted", LAYER_SYNC | {"signed": False}, 7.5))
    assert rows(logdir)[1][-1] == "7.50 (5,000)"


def test_several_scores_each_with_their_deviation(logdir):
    line = score_line("trained", None, 0.0, extractor="inception", FID=12.345, IS=9.1, IS_std=0.127)
    del line["FD_efficientnet_lite0"]
    append(logdir, line)
    header, table = summary_table(collect(logdir))
    assert header[5:] == ["FD_efficientnet_lite0 (images)", "FID (images)", "IS (images)"]
    assert table[0][5:] == ["21.00 (5,000)", "12.35 (5,000)", "9.10 ± 0.127 (5,000)"]


def test_gaps_on_different_images_are_flagged(logdir):
    assert not summary_notes(collect(logdir))
    pair = report("converted stream", STREAM, 0.0777, 1.0), report("fine-tuned stream", STREAM, 0.0321, 1.0)
    write_json(logdir / "SNN_2bit_ft/gap.json", gap_file(*pair, images=1))
    [note] = summary_notes(collect(logdir))
    assert "1 image " in note and "8 images" in note and "0.0777" in note
    assert rows(logdir)[2][3] == "0.0654"


def test_fine_tuning_from_another_checkpoint_is_flagged(logdir):
    append(logdir, score_line("trained", None, 20.0, checkpoint="another"))
    assert any("another" in note for note in summary_notes(collect(logdir)))


def test_scores_during_training_stand_apart(logdir):
    append(logdir, {"step": 500, "FID": 91.5, "FID_EMA": 82.25})
    append(logdir, {"step": 500, "FID": 71.5, "FID_EMA": 62.25})
    run = collect(logdir)
    assert run.training_scores == {500: {"FID": 71.5, "FID_EMA": 62.25}} and not run.notes
    assert summary_table(run)[1] == FULL_TABLE
    assert "<td>500</td><td class=num>71.50</td><td class=num>62.25</td>" in page(run)


def test_verdict_is_one_sentence_of_the_numbers(logdir):
    said = verdict(collect(logdir))
    assert said.startswith("2-bit network: layer_sync equals its quantized ANN exactly; stream (3 steps) is 6.54 % off")
    assert "stream +auto (3 + 2 steps) equals it to rounding (3e-16)" in said
    assert "fine-tuning takes the gap from 6.54 % to 3.21 %" in said
    assert "on 5,000 images: ANN 21.00, layer_sync 22.00, stream 33.00, fine-tuned 24.00." in said


def test_verdict_leaves_incomparable_scores_out(logdir):
    append(logdir, score_line("converted", STREAM, 7.5, count=64))
    assert "FD_" not in verdict(collect(logdir))


def test_verdict_before_conversion(tmp_path):
    write_lines(tmp_path / "log.jsonl", [{"stage": "train", "step": 99, "loss": 0.0456}])
    assert verdict(collect(tmp_path)) == "Trained for 100 steps, last logged loss 0.0456; no gap or score measured yet."


def test_strips_show_the_same_noise_in_each_column(logdir):
    write_image_set(logdir, "finetuned", STREAM, [1, 3, 7])
    (logdir / "generated" / "finetuned_stream" / "000000.png").unlink()
    (logdir / "generated" / "finetuned_stream" / "000002.png").unlink()
    [group] = sample_groups(collect(logdir))
    assert [grid.title for grid in group.grids] == [
        "real data",
        "quantized ANN",
        "converted SNN, layer_sync",
        "converted SNN, stream",
        "fine-tuned SNN, stream",
    ]
    strips = [decode(grid.png) for grid in group.grids]
    assert strips[0].size == (78, 8)  # the eight images of real.png, two pixels apart
    assert {strip.size for strip in strips[1:]} == {(18, 8)}
    ends = {(strip.getpixel((0, 0)), strip.getpixel((17, 7))) for strip in strips[1:]}
    assert ends == {((10, 10, 10, 255), (30, 30, 30, 255))}
    assert all(strip.getpixel((8, 0))[3] == 0 for strip in strips), "the page, light or dark, shows between images"
    assert all(grid.width == 8 * strip.width for grid, strip in zip(group.grids, strips, strict=True))


def test_images_of_other_noise_stand_apart(logdir):
    write_image_set(logdir, "converted", AUTO | {"settle_steps": 2}, range(4), seed=1)  # takes stream's folder
    groups = sample_groups(collect(logdir))
    assert [group.heading[-6:] for group in groups] == ["seed 0", "seed 1"]
    assert [grid.mode.schedule_label for grid in groups[1].grids] == ["stream +2"]


def test_images_of_other_sampler_options_stand_apart(logdir):
    write_image_set(logdir, "converted", AUTO | {"settle_steps": 2}, range(4), seed=0)  # takes stream's folder
    path = logdir / "generated" / "converted_stream" / "settings.json"
    write_json(path, json.loads(path.read_text()) | {"sampler_options": {"skip": "quadratic"}})
    groups = sample_groups(collect(logdir))
    assert [group.heading for group in groups] == [
        "ddim, 50 steps, eta 0.0, seed 0",
        "ddim, 50 steps, eta 0.0, skip quadratic, seed 0",
    ]
    assert [grid.mode.schedule_label for grid in groups[1].grids] == ["stream +2"]


def decode(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))
