"""The charts: a mark stands where its value is and says it, and nothing is drawn that was not measured."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from ann2snn.errors import UserError
from ann2snn.report.charts import charts
from ann2snn.report.collect import collect
from ann2snn.report.denoising import AMPLIFIED, MOST_BYTES, denoising, difference
from ann2snn.report.html import page
from ann2snn.report.pareto import front
from ann2snn.report.svg import WIDTH, Plot, Series, linear, logarithmic, tick_text
from ann2snn.run.paths import load_paths
from tests.report.run_folder import (
    AUTO,
    LAYER_SYNC,
    STREAM,
    account,
    gap_file,
    report,
    score_line,
    with_times,
    write_costs,
    write_json,
    write_lines,
    write_paths,
)
from tests.report.test_page import HOSTILE, Page


def titles(svg: str) -> list[str]:
    return [title.text for title in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}title")]


@pytest.mark.parametrize("axis", [linear, logarithmic])
def test_axes_hold_their_values_and_ticks_stand_where_they_say(axis):
    generator = np.random.default_rng(0)
    for scale in (1e-9, 1e-3, 1.0, 7e4, 1e90):
        values = (scale * generator.uniform(0.1, 9, 5)).tolist()
        made = axis("x", [*values, math.nan, math.inf])
        assert all(0 <= made.share(value) <= 1 for value in values) and 2 <= len(made.ticks) <= 12
        shares = [made.share(value) for value, _ in made.ticks]
        assert shares == sorted(shares) and -1e-9 <= shares[0] and shares[-1] <= 1 + 1e-9
    assert axis("x", []).ticks and axis("x", [3.0, 3.0]).share(3.0) == pytest.approx(0.5, abs=0.3)


def test_the_last_tick_of_a_chart_is_not_cut_off_at_its_edge():
    [last] = re.findall(
        r"<text[^>]*>1,000<", "".join(Plot(linear("", [0, 1000]), linear("", [0, 1]), 100).axes().parts)
    )
    assert f'text-anchor="end" x="{WIDTH}"' in last


def test_marks_stand_at_their_values():
    plot = Plot(linear("", [0, 10]), logarithmic("", [1, 100]), height=100, left=50, width=200)
    plot.draw(Series("", "blue", [(0, 1), (5, 10), (10, math.nan)], ["a", "b", "c"]))
    [drawn] = plot.parts
    low, high = math.log10(0.8), math.log10(125)
    centres = [tuple(map(float, found)) for found in re.findall(r'cx="([0-9.]+)" cy="([0-9.]+)"', drawn)]
    expected = [
        (50 + 20 * x, plot.top + 100 * (1 - (math.log10(y) - low) / (high - low))) for x, y in ((0, 1), (5, 10))
    ]
    assert centres == [pytest.approx(one, abs=0.06) for one in expected]
    assert re.findall(r"<title>(.)</title>", drawn) == ["a", "b"]


def test_ticks_are_short():
    assert [tick_text(v) for v in (0.05, 1, 5000, 20_000, 1e6, 5e9, 1e15)] == [
        "0.05",
        "1",
        "5000",
        "20 k",
        "1 M",
        "5 G",
        "1000 T",
    ]


def test_every_mark_of_the_gap_says_its_error_and_exact_ones_stand_at_zero(logdir):
    chart = charts(collect(logdir))["gap"]
    assert "downblocks.0, converted SNN, stream: 0.0327" in titles(chart.svg)
    rows = dict(zip(chart.header, next(row for row in chart.rows if row[0] == "prediction"), strict=True))
    assert rows["converted SNN, layer_sync"] == "0" and rows["converted SNN, stream"] == "0.0654"
    groups = re.findall(r'<g class="(\w+)"><path[^>]*>(.*?)</g>', chart.svg)
    exact = {y for colour, marks in groups if colour == "blue" for y in re.findall(r'cy="([0-9.]+)"', marks)}
    zero = re.search(r'y="([0-9.]+)" dy=".32em" text-anchor="end">0</text>', chart.svg)[1]
    assert exact == {zero}


def test_the_heat_map_has_a_cell_for_each_block_and_time_of_the_networks_that_differ(logdir):
    exact, stream = report("layer_sync", LAYER_SYNC, 0.0, 1.0), report("stream", STREAM, 0.5, 2.0)
    old = report("stream +auto", AUTO, 0.25, 3.0)  # of a file that knows no times
    write_json(logdir / "gap.json", gap_file(with_times(exact, 1, 1), with_times(stream, 0.5, 2.0), old))
    (logdir / "SNN_2bit_ft" / "gap.json").unlink()
    chart = charts(collect(logdir))["gap_by_time"]
    told = titles(chart.svg)
    assert len(told) == 3 * 2 and "prediction at t = 100, converted SNN, stream: 1" in told
    strengths = [float(value) for value in re.findall(r'fill-opacity="([0-9.]+)"', chart.svg)]
    assert strengths == pytest.approx([e / 1.0 for e in (0.0625, 0.25, 0.125, 0.5, 0.25, 1.0)], abs=1e-3)
    assert chart.header[2:] == ["t = 900", "t = 100"] and len(chart.rows) == 6  # exact ones are in the table
    write_json(logdir / "gap.json", gap_file(exact, stream, old))
    assert "gap_by_time" not in charts(collect(logdir))


@pytest.mark.parametrize("times", [None, 3, [HOSTILE], [1e999, 1.0], [[1]]])
def test_times_that_make_no_sense_cost_only_the_heat_map(logdir, times):
    stream = with_times(report("stream", STREAM, 0.5, 2.0), 1, 2) | {"times": times}
    write_json(logdir / "gap.json", gap_file(stream))
    assert "gap_by_time" not in charts(collect(logdir)) and page(collect(logdir))


def test_the_loss_of_each_quarter_of_the_diffusion_times_is_a_line_of_its_own(logdir):
    lines = [{"stage": "train", "step": i, "loss": 0.5, "loss_q1": 0.9, "loss_q2": 0.5} for i in range(10)]
    lines[3] |= {"loss_q4": 0.1}
    write_lines(logdir / "log.jsonl", [*lines, {"stage": "train", "step": 10, "loss_q4": "0.1"}])
    chart = charts(collect(logdir))["loss_by_time"]
    assert [name for name, *_ in chart.key] == ["first quarter (least noise)", "second", "last (most noise)"]
    assert ["second", "9", "0.5"] in chart.rows and ["last (most noise)", "3", "0.1"] in chart.rows
    assert len(chart.rows) == 21 and "first quarter (least noise), step 4: 0.9" in titles(chart.svg)
    assert "Training loss by diffusion time" in page(collect(logdir))
    write_lines(logdir / "log.jsonl", [{"stage": "train", "step": i, "loss": 0.5} for i in range(10)])
    assert "loss_by_time" not in charts(collect(logdir))


def test_long_losses_by_time_are_running_means(logdir):
    lines = [{"stage": "train", "step": i, "loss_q3": float(i % 2)} for i in range(1000)]
    write_lines(logdir / "log.jsonl", lines)
    chart = charts(collect(logdir))["loss_by_time"]
    assert len(chart.rows) == 80 and {value for _, _, value in chart.rows} == {"0.5"}


def test_the_front_is_what_no_other_point_beats():
    generator = np.random.default_rng(1)
    points = [tuple(p) for p in generator.integers(0, 12, (40, 2)).tolist()]
    beaten = {p for p in points if any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert front(points) == sorted(set(points) - beaten)


def test_score_energy_and_steps_stand_together_with_the_ann(logdir):
    write_costs(logdir)
    how = {"sampler_options": {"carry": True}}
    lines = [score_line("converted", LAYER_SYNC, 22.0), score_line("converted", LAYER_SYNC, 23.0, **how)]
    write_lines(logdir / "snn_eval.txt", lines)
    chart = charts(collect(logdir))["pareto"]
    rows = {row[0]: dict(zip(chart.header, row, strict=True)) for row in chart.rows}
    assert list(rows) == ["2-bit ANN, zeros skipped", "layer_sync", "layer_sync carried", "stream"]
    score, steps, energy = "FD_efficientnet_lite0", "steps per call", "arithmetic, int8"
    assert [rows[name][score] for name in rows] == ["–", "22.00", "23.00", "–"]
    assert [rows[name][steps] for name in rows] == ["–", "54.00", "54.00", "3.00"]
    assert [rows[name][energy] for name in rows] == ["5 µJ", "4 µJ", "1 µJ", "9 µJ"]
    told = titles(chart.svg)
    assert "layer_sync carried: 1 µJ, FD efficientnet lite0 23.00" in told
    assert told.count("2-bit ANN, zeros skipped, 5 µJ") == 2  # a line in both charts of arithmetic: no score, no steps
    write_lines(logdir / "snn_eval.txt", [*lines, score_line("trained", None, 21.0)])
    told = titles(charts(collect(logdir))["pareto"].svg)
    assert "2-bit ANN, zeros skipped: 5 µJ, FD efficientnet lite0 21.00" in told


@pytest.mark.parametrize("energy", [-1.0, 0.0, 1e94, 1e-300])
@pytest.mark.parametrize("steps", [-3, 0, 10**60])
def test_costs_that_no_axis_can_hold_are_survived(logdir, energy, steps):
    write_costs(logdir)
    reports = [account("ANN", None, energy), account("converted stream", STREAM, 9.0, steps)]
    reports.append(account("converted layer_sync", LAYER_SYNC, energy, 3))
    reports[1]["spikes_by_call"] = [energy, -energy]
    write_json(logdir / "cost.json", {"reports": reports})
    write_json(logdir / "carry.json", {"errors": [-1.0], "calls": 2, "sampler": "ddim", "reports": reports})
    write_json(logdir / "gap.json", gap_file(with_times(report("stream", STREAM, energy, 2.0), 1, -2)))
    assert "nan" not in "".join(chart.svg for chart in charts(collect(logdir)).values())


def frames(html: str) -> list[np.ndarray]:
    """The strips of the section, uint8 [H, W]."""
    import base64
    import io

    from PIL import Image

    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def test_the_path_shows_both_networks_and_their_difference_frame_by_frame(logdir):
    write_paths(logdir / "trajectory.npz", frames=5, apart=3)
    run = collect(logdir)
    html = denoising(run.paths)
    ann, snn, apart = frames(html)
    assert ann.shape == snn.shape == apart.shape == (8, 5 * 2 * 8)
    assert [int(ann[0, 16 * f + 8 * n]) for f in range(5) for n in range(2)] == [
        10 * f + 100 * n for f in range(5) for n in range(2)
    ]
    assert (snn.astype(int) - ann == 3).all() and (apart == 3 * AMPLIFIED).all()
    assert 'data-labels="noise, t = 999|t = 666|t = 333|t = 0|image"' in html and "--frames:5;--images:2" in html
    assert "differ by up to 3 of 255" in html and "layer_sync, levels carried" in html and "seed 7" in html
    assert "controls" in html and 'class="controls" hidden' in html  # without a script the strips stand still
    write_paths(logdir / "trajectory.npz")
    assert "agree in every one" in denoising(collect(logdir).paths)


def test_differences_beyond_the_scale_are_white_and_not_wrapped(tmp_path):
    write_paths(tmp_path / "trajectory.npz")
    paths = load_paths(tmp_path / "trajectory.npz")
    other = replace(paths, ann=np.full_like(paths.ann, 255), snn=np.zeros_like(paths.snn))
    assert (difference(other) == 255).all()


def test_long_paths_of_large_images_stay_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 2, 3, 128, 128)).astype(np.uint8)
    write_paths(tmp_path / "trajectory.npz")
    paths = replace(load_paths(tmp_path / "trajectory.npz"), ann=noise, snn=noise, times=np.arange(31.0)[::-1])
    html = denoising(paths)
    assert len(html) < 3 * MOST_BYTES and html.count("|") == 7 and html.count("image</td>") == 1


def test_a_damaged_path_is_a_note_and_its_words_are_text(logdir):
    (logdir / "trajectory.npz").write_bytes(b"PK")
    assert collect(logdir).notes == ["trajectory.npz cannot be read as sampling paths and is left out"]
    write_paths(logdir / "trajectory.npz")
    hostile = replace(
        load_paths(logdir / "trajectory.npz"), how={"sampler": HOSTILE, "spiking": HOSTILE, "seed": [HOSTILE]}
    )
    html = denoising(hostile)
    assert "<script" not in html and "alert(" in html


def test_a_full_page_stays_within_what_can_be_sent(logdir):
    write_costs(logdir)
    write_paths(logdir / "trajectory.npz")
    source = page(collect(logdir))
    assert len(source.encode()) < 1_500_000
    headings = re.findall(r"<h2>(.*?)</h2>", source)
    assert {"From noise to image", "Score, energy, time steps", "Carrying"} <= set(headings)
    shown = Page(source)
    plots = [attributes for tag, attributes in shown.tags if tag == "svg"]
    assert len(plots) == len(charts(collect(logdir))) and all(attributes["aria-label"] for attributes in plots)
    assert source.count("<summary>the numbers</summary>") == len(plots)


def test_counts_of_generated_images_are_told(logdir):
    folder = logdir / "generated" / "converted_layer_sync"
    entries = [{"image": i, "spikes": 100 * (i + 1), "time_steps": 5, "restarts": 1} for i in range(3)]
    write_lines(folder / "spikes.jsonl", [*entries, {"image": 99, "spikes": 1, "time_steps": 1, "restarts": 1}])
    source = page(collect(logdir))
    row = re.search(r"<tr><td>converted SNN, layer_sync</td>(<td class=num>3</td>.*?)</tr>", source)[1]
    assert re.findall(r">([^<]+)<", row) == ["3", "200", "100", "300", "1"]


def test_an_unreadable_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="trajectory.npz"):
        load_paths(tmp_path / "trajectory.npz")
