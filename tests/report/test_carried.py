"""The section on carried levels: what was measured is shown, and a file that is none is survived."""

import json

import pytest

from ann2snn.config import SampleConfig
from ann2snn.convert import convert
from ann2snn.generate.probe import OwnPath
from ann2snn.report.carried import parse_carry
from ann2snn.report.charts import charts
from ann2snn.report.collect import collect
from ann2snn.report.html import page
from ann2snn.stages.carrying import measure_carrying
from tests.helpers import random_ann
from tests.report.test_page import HOSTILE, Page


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The file of a small network under stream, five calls."""
    path, ann = tmp_path_factory.mktemp("carry") / "carry.json", random_ann(ch=4, ch_mult=(1,))
    measure_carrying(path, OwnPath(ann, 1), convert(ann, schedule="stream"), SampleConfig("ddim", 5, carry=True))
    return path


def test_page_shows_the_spikes_of_every_call_and_what_they_cost(measured):
    run = collect(measured.parent)
    drawn = charts(run)["carry"]
    assert {len(series) for series in run.carried.spikes.values()} == {5} and 0 < run.carried.share < 1
    text = page(run)
    assert drawn.svg in text and len(drawn.rows) == 5 and drawn.svg.count("<title>") == 10
    assert "equals its quantized ANN exactly in every call" in Page(text).text
    assert "converted, from rest, stream" in text and "converted stream carried" in text


@pytest.mark.parametrize("field", ["errors", "reports", "sampler", "calls"])
@pytest.mark.parametrize("value", [None, HOSTILE, [HOSTILE], 1e308, {}, [[]]])
def test_a_file_that_makes_no_sense_is_left_out_or_harmless(measured, tmp_path, field, value):
    content = json.loads(measured.read_text()) | {field: value}
    content["reports"] = content["reports"][:3] if isinstance(content["reports"], list) else content["reports"]
    (tmp_path / "carry.json").write_text(json.dumps(content))
    (tmp_path / "flagfile.txt").write_text("--bit=2\n")
    run = collect(tmp_path)
    assert HOSTILE not in page(run)
    assert parse_carry(content, "carry.json", notes := []) is not None or notes
