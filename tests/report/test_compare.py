"""Two runs on one page: the same networks beneath each other, and the settings in which the runs differ."""

import re
import shutil

import pytest

from ann2snn.report.__main__ import main
from ann2snn.report.collect import collect
from ann2snn.report.compare import comparison, flags_of
from tests.report.run_folder import STREAM, score_line, write_costs, write_lines
from tests.report.test_page import HOSTILE, Page


@pytest.fixture
def other(logdir):
    """A second run with another score, other settings, and costs."""
    folder = shutil.copytree(logdir, logdir.with_name("other_run"))
    write_lines(folder / "snn_eval.txt", [score_line("converted", STREAM, 44.0)])
    (folder / "flagfile.txt").write_text("--bit=4.0\n--lr=0.0002\n--carry\n# --bit=4.0\n")
    write_costs(folder)
    return folder


def tables(source: str) -> dict[str, list[list[str]]]:
    """The cells of the first table of each section, by its heading."""
    found = {}
    for part in source.split("<h2>")[1:]:
        body = re.search(r"<table.*?</table>", part, flags=re.S)
        rows = re.findall(r"<tr>(.*?)</tr>", body[0], flags=re.S) if body else []
        found[part.split("</h2>")[0]] = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
    return found


def test_networks_of_both_runs_stand_together_and_only_differing_settings_are_listed(logdir, other):
    found = tables(comparison(collect(logdir), collect(other)))
    networks = [row[:3] for row in found["Networks"][1:]]
    assert networks[:2] == [["quantized ANN", "–", "my_run"], ["quantized ANN", "–", "other_run"]]
    assert [row[2] for row in found["Networks"][1:]] == [*["my_run", "other_run"] * 5, "other_run"]
    assert found["Networks"][-1][:3] == ["converted SNN", "layer_sync carried", "other_run"]
    scores = [(row[1], row[2], row[3]) for row in found["Scores"][1:]]
    assert ("stream", "my_run", "33.00") in scores and ("stream", "other_run", "44.00") in scores
    assert found["Settings that differ"] == [
        ["stage", "setting", "my_run", "other_run"],
        ["flagfile.txt", "--bit", "2.0", "4.0"],
        ["flagfile.txt", "--carry", "–", "True"],
    ]
    assert [row[:2] for row in found["Cost, per image and network call"][1:4]] == [
        [name, "other_run"] for name in ("fp32 ANN", "2-bit ANN", "2-bit ANN, zeros skipped")
    ]


def test_both_runs_are_drawn_into_the_same_axes(logdir, other):
    source = comparison(collect(logdir), collect(other))
    said = re.findall(r"<title>(prediction, \w+_run: converted SNN, stream: [^<]*)</title>", source)
    assert said == [f"prediction, {run}: converted SNN, stream: 0.0654" for run in ("my_run", "other_run")]
    assert source.count('class="line dashed"') == len(collect(other).gaps.reports) + 1 + 2  # gap, tuned and carried


def test_the_command_writes_one_page_beside_the_report(logdir, other, capsys):
    (logdir / "report.html").write_text("the report")
    assert main([str(logdir), str(other)]) == 0
    printed = capsys.readouterr().out.splitlines()
    path = logdir / "report_vs_other_run.html"
    assert printed[0] == f"{logdir}:" and f"{other}:" in printed and printed[-1] == str(path)
    assert "my_run and other_run" in path.read_text(encoding="utf-8")
    assert (logdir / "report.html").read_text() == "the report" and not list(other.glob("report*"))


def test_runs_that_are_called_alike_are_told_apart(logdir, tmp_path):
    twin = shutil.copytree(logdir, tmp_path / "second" / "my_run")
    found = tables(comparison(collect(logdir), collect(twin)))
    assert {row[2] for row in found["Networks"][1:]} == {f"{tmp_path.name}/my_run", "second/my_run"}
    assert main([str(logdir), str(twin)]) == 0 and (logdir / "report_vs_my_run.html").is_file()


@pytest.mark.parametrize("name", ["nowhere", "my_run", "my_run/../my_run", "empty"])
def test_what_cannot_be_compared_is_one_line_and_exit_code_2(logdir, capsys, name):
    (logdir.parent / "empty").mkdir()
    assert main([str(logdir), str(logdir.parent / name)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert not list(logdir.glob("report_vs*"))


def test_hostile_names_and_settings_are_text(logdir, other):
    write_lines(other / "snn_eval.txt", [score_line(HOSTILE, STREAM, 5.0, extractor=HOSTILE, sampler=HOSTILE)])
    (other / "flagfile.txt").write_text(f"--{HOSTILE[:30]}=x\n--sampler={HOSTILE[:30]}\n--logdir=/home/me/secret/run\n")
    folder = other.rename(other.with_name("<img src=x onerror=alert(1)>"))
    source = comparison(collect(logdir), collect(folder))
    shown = Page(source)
    assert [tag for tag, _ in shown.tags].count("script") == 1 and "img" not in {tag for tag, _ in shown.tags}
    assert "/home/me" not in source and "<img src=x onerror=alert(1)>" in shown.text
    assert main([str(logdir), str(folder)]) == 0
    assert (logdir / "report_vs__img_src_x_onerror_alert_1__.html").is_file()


def test_a_run_with_nothing_measured_is_compared_all_the_same(logdir, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "flagfile.txt").write_text("--bit=2.0\n")
    for pair in ((logdir, bare), (bare, logdir)):
        assert "bare" in Page(comparison(*map(collect, pair))).text


def test_flags_are_read_as_the_stages_write_them():
    text = "--bit=2.0\n--nocarry\n--train\n--ch_mult=1\n--ch_mult=2\n# Of these, given:\n#   --bit=3.0\nnonsense\n"
    assert flags_of(text) == {"bit": "2.0", "carry": "False", "train": "True", "ch_mult": "1, 2"}
