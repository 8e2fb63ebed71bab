"""The cost section of the page: what was measured is shown, and a file that is none is survived."""

import json
from dataclasses import replace

import pytest

import ann2snn
from ann2snn.config import SpikingConfig
from ann2snn.convert import convert
from ann2snn.cost import INT8
from ann2snn.generate.probe import OwnPath
from ann2snn.report.collect import collect
from ann2snn.report.costs import cost_table, joules, layer_table, parse_costs, scaled, steps_text
from ann2snn.report.html import page
from ann2snn.stages.cost import entry, measure_and_write
from tests.helpers import random_ann, random_batch
from tests.report.test_page import HOSTILE, Page

STREAM = SpikingConfig("stream")
MODES = [SpikingConfig(), STREAM, replace(STREAM, settle_steps="auto")]
LABELS = ["fp32 ANN", "2-bit ANN", "2-bit ANN, zeros skipped"]
LABELS += [f"converted {m}{w}" for m in ("layer_sync", "stream", "stream +auto") for w in ("", ", all MAC")]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(path of the file, reports): one image under the modes of the gap table."""
    path = tmp_path_factory.mktemp("cost") / "cost.json"
    ann = random_ann()
    reports = measure_and_write(path, OwnPath(ann, 1), {"converted": convert(ann)}, MODES, calls_per_image=50)
    return path, reports


def content_of(measured) -> dict:
    return json.loads(measured[0].read_text())


def test_file_holds_the_reports_and_the_energy_of_a_generated_image(measured):
    content, (_, reports) = content_of(measured), measured
    assert (content["images"], content["times"], content["calls_per_image"]) == (1, 4, 50)
    assert [r["label"] for r in content["reports"]] == [r.label for r in reports]
    for raw, report in zip(content["reports"], reports, strict=True):
        for way, by_prices in report.energies().items():
            for prices, energy in by_prices.items():
                assert raw["energy"][way][prices]["total_pj"] == energy.total
                assert raw["energy_per_generated_image"][way][prices]["total_pj"] == 50 * energy.total


def test_table_has_the_baselines_and_every_mode_counted_both_ways(measured):
    content, (_, reports) = content_of(measured), measured
    costs = parse_costs(content, "cost.json", notes := [])
    assert not notes and [row.label for row in costs.rows()] == LABELS
    rows = {row.label: row for row in costs.rows()}
    stream = reports[2]
    assert rows["converted stream"].counts["ac"] == stream.total("ac")
    assert rows["converted stream, all MAC"].counts["mac"] == stream.total("ac") + stream.total("mac")
    assert rows["fp32 ANN"].counts["mac"] == reports[0].dense_mac > reports[0].total("mac")
    assert rows["2-bit ANN, zeros skipped"].counts["mac"] == reports[0].total("mac")
    assert rows["converted layer_sync"].steps == (18 * 3, 18 * 3) and rows["converted stream"].steps == (3, 21)
    header, cells, _ = cost_table(costs)
    assert all(len(row) == len(header) for row in cells)


def test_table_has_the_ann_that_computes_differences_and_the_network_that_carries_its_levels():
    ann = random_ann()
    (x, t), (other, _) = random_batch(ann), random_batch(ann, seed=1)
    calls = [(x, t), (x + 0.05 * other, t)]
    reports = ann2snn.cost(ann, trajectory=calls), ann2snn.cost(convert(ann), trajectory=calls, carry=True)
    content = json.loads(json.dumps({"reports": [entry(report, 50) for report in reports]}, allow_nan=False))
    costs = parse_costs(content, "cost.json", notes := [])
    labels = [*LABELS[:3], "2-bit ANN, differences of calls", "layer_sync carried", "layer_sync carried, all MAC"]
    assert not notes and [row.label for row in costs.rows()] == labels
    rows = {row.label: row for row in costs.rows()}
    differences = sum(layer.mac for layer in reports[0].difference_layers)
    assert rows["2-bit ANN, differences of calls"].counts["mac"] == differences < reports[0].total("mac")
    carried = rows["layer_sync carried"].energies
    assert carried["int8_state16", "total_pj"] < carried["int8", "total_pj"]
    assert carried["int8", "total_by_event_pj"] == reports[1].energy(INT8).total_by_event


def test_page_shows_totals_and_layers(measured, logdir):
    (logdir / "cost.json").write_text(measured[0].read_text())
    source = page(collect(logdir))
    shown = Page(source)
    assert " Cost " in shown.text and "Not everything" not in shown.text
    for label in (*LABELS, "converted stream: layers", "downblocks.0.block1.2", "50 calls"):
        assert label in shown.text, label
    assert sum(tag == "details" for tag, _ in shown.tags) >= 4
    (logdir / "cost.json").unlink()
    assert " Cost " not in Page(page(collect(logdir))).text


def test_cost_file_alone_is_enough_for_a_report(measured):
    run = collect(measured[0].parent)
    assert len(run.costs.accounts) == 4 and " Cost " in Page(page(run)).text


def test_hostile_strings_are_shown_as_text(measured, logdir):
    content = content_of(measured)
    for raw in content["reports"]:
        raw["label"] = HOSTILE
        raw["totals"][HOSTILE] = 1
        raw["layers"][0] |= {"name": HOSTILE, "kind": HOSTILE, "inputs": HOSTILE}
        raw["energy"][HOSTILE] = raw["energy"].popitem()[1]
    (logdir / "cost.json").write_text(json.dumps(content))
    source = page(collect(logdir))
    assert source.count("<script") == 1 and "\x1b" not in source and "alert(" in source


WRONG = (
    "", "{", "null", "[]", "7", '{"reports": 3}', '{"reports": [3, {}, null]}', "[" * 100_000,
    '{"reports": [{"label": 1, "totals": [], "energy": {}, "layers": []}]}',
    '{"reports": [{"label": 1, "totals": {}, "energy": {"fp32": 3}, "layers": []}]}',
    '{"reports": [{"label": 1, "totals": {"ac": "x", "mac": 1e999}, "energy": {"a": {}}, "layers": [{"name": 3}]}]}',
    '{"images": "a", "calls_per_image": [], "reports": [{"label": {}, "totals": {}, "energy": {}, "layers": [7]}]}',
    '{"calls_per_image": 1e308, "reports": [{"label": "a", "bits": {}, "latency_steps": NaN, "totals": {"ac": 1e308, '
    '"mac": 1e308}, "energy": {"all_mac": {"fp32": {"total_pj": 1e308}}}, "layers": []}]}',
)  # fmt: skip


@pytest.mark.parametrize("content", WRONG, ids=range(len(WRONG)))
def test_any_content_is_survived(logdir, content):
    (logdir / "cost.json").write_text(content)
    assert "my_run" in Page(page(collect(logdir))).text


def test_malformed_report_is_noted_and_the_others_are_shown(measured, logdir):
    content = content_of(measured)
    content["reports"][1] = {"label": "x"}
    (logdir / "cost.json").write_text(json.dumps(content))
    run = collect(logdir)
    assert "cost.json: a malformed report is left out" in run.notes and len(run.costs.accounts) == 3


def test_numbers_are_shown_with_the_prefix_that_fits():
    assert [scaled(v) for v in (0, 7, 99.94, 999.4, 999.6, 1234, 5.678e6)] == [
        "0",
        "7",
        "99.9",
        "999",
        "1 k",
        "1.23 k",
        "5.68 M",
    ]
    assert [joules(v) for v in (0.5, 1070000, 2.5e9, float("nan"))] == ["0.5 pJ", "1.07 µJ", "2.5 mJ", "–"]
    assert [steps_text(s) for s in ((None, None), (5, 25), (54, 54), (5, None))] == ["–", "5 / 25", "54", "5"]


def test_layer_table_names_what_each_layer_read(measured):
    costs = parse_costs(content_of(measured), "cost.json", [])
    header, rows, _ = layer_table(costs.accounts[2])
    found = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert found["head"]["inputs"] == "real" and found["head"]["AC"] == "0" and found["head"]["MAC"] != "0"
    assert found["tail.2"]["inputs"] == "spikes" and found["tail.2"]["MAC"] == "0"
