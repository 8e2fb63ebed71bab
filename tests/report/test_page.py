"""The page: whatever exists is shown, nothing is fetched, nothing from a file is trusted."""

import base64
import hashlib
import importlib
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import ann2snn.report
from ann2snn.errors import UserError
from ann2snn.report.__main__ import main
from ann2snn.report.collect import collect
from ann2snn.report.grids import sample_groups
from ann2snn.report.html import page
from ann2snn.report.parse import shareable
from tests.report.run_folder import (
    AUTO,
    INPUTS,
    STREAM,
    gap_file,
    report,
    score_line,
    write_image_set,
    write_json,
    write_lines,
    write_picture,
    write_run,
    written_report,
)

HOSTILE = "<script>alert('x')</script>\"&$\\frac{\x1b[31m\ud800\n"


class Page(HTMLParser):
    """Tags, attributes and text of a document; shown: the text without style and script."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.shown, self._open = "", "", ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "
        self.shown += "" if self._open in ("script", "style") else data + " "


def page_of(logdir: Path) -> Page:
    return Page(page(collect(logdir)))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The report of a full run, whose flags name addresses on the net."""
    logdir = tmp_path_factory.mktemp("runs") / "my_run"
    write_run(logdir)
    (logdir / "flagfile.txt").write_text('--bit=2\n--data_dir=http://host/x\n<img src="http://host/y">\n')
    return written_report(logdir)


def test_full_run_has_every_section_and_chart(written):
    assert written.name == "report.html" and written.parent.name == "my_run"
    titles = ["Summary", "Settings", "Training", "Samples", "Scores", "Gap, block by block", "Fine-tuning", "Spikes"]
    headings = re.findall(r"<h2>(.*?)</h2>", written.read_text(encoding="utf-8"))
    assert [heading for heading in headings if heading in titles] == titles
    figures = list((written.parent / "figures").iterdir())
    names = {"loss.svg", "gap.svg", "firing_rate.svg", "finetune.svg", "raster.svg", "samples.png"}
    assert {file.name for file in figures} == names
    for file in figures:
        if file.suffix == ".svg":
            assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert not list(written.parent.rglob(".*tmp"))


def test_nothing_is_fetched(written):
    source = written.read_text(encoding="utf-8")
    shown = Page(source)
    pictures = [attributes["src"] for _, attributes in shown.tags if "src" in attributes]
    assert len(pictures) >= 5 and all(p.startswith("data:image/png;base64,") for p in pictures)
    assert not {tag for tag, _ in shown.tags} & {
        "link",
        "iframe",
        "object",
        "base",
        "a",
        "use",
        "image",
        "foreignobject",
    }
    assert not re.search(r"url\(|@import|href", source)
    assert "http" not in re.sub(r"<pre.*?</pre>|http-equiv|http://www.w3.org/2000/svg", "", source, flags=re.S)


@pytest.mark.parametrize("name", INPUTS)
def test_any_input_may_be_missing(logdir, name):
    path = logdir / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shown = page_of(logdir)
    assert "my_run" in shown.text and "Not everything" not in shown.text


@pytest.mark.parametrize("name", INPUTS)
def test_any_input_is_enough(logdir, tmp_path, name):
    only = tmp_path / "only"
    only.mkdir()
    source = logdir / name
    shutil.copytree(source, only / name) if source.is_dir() else shutil.copy(source, only)
    html = written_report(only).read_text(encoding="utf-8")
    assert "quantized ANN" in html and "Not everything" not in html


def test_hostile_strings_are_shown_as_text(logdir):
    lines = [score_line(HOSTILE, STREAM, 5.0, notes=[HOSTILE], extractor=HOSTILE, date=HOSTILE, sampler=HOSTILE)]
    write_lines(logdir / "snn_eval.txt", lines)
    hostile = report(HOSTILE, STREAM, 0.1, 5.0)
    hostile["blocks"][0]["block"] = HOSTILE
    write_json(logdir / "gap.json", gap_file(hostile))
    tuned = {"identity": {}, "prediction_gap": [1, 2], "blocks": [{"block": HOSTILE, "gap_before": 1, "gap_after": 1}]}
    write_json(logdir / "SNN_2bit_ft" / "finetune.json", tuned)
    write_image_set(logdir, "converted", STREAM, range(4), checkpoint=HOSTILE, sampler=HOSTILE)
    (logdir / "flagfile.txt").write_text(HOSTILE.replace("\ud800", ""))
    folder = logdir.rename(logdir.with_name("<script>alert('x')<b onload=x>"))
    source = written_report(folder).read_text(encoding="utf-8")
    shown = Page(source)
    assert [tag for tag, _ in shown.tags if tag in ("script", "b")].count("script") == 1  # the page's own
    assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]
    assert "<script>alert('x')</script>" in shown.text
    assert "\x1b" not in re.sub(r"<pre.*?</pre>", "", source, flags=re.S)


WRONG = (
    "", "{", "null", "[]", "7", '"x"', "{}", "[" * 100_000, "\xff",
    '{"reports": 3}', '{"reports": [3, {}, null]}', '{"prediction_gap": "ab", "blocks": {}}',
    '{"images": 1e999, "reports": [{"label": 3, "spiking": {"schedule": []}, "blocks": [{"block": "prediction"}]}]}',
    '{"network": "trained", "spiking": [], "bits": {}, "count": "many", "notes": 3}',
    '{"network": "trained", "spiking": null, "bits": NaN, "count": [1], "notes": {"a": 1}, "FID": NaN, "seed": {}}',
    '{"stage": "train", "step": "a", "loss": []}',
)  # fmt: skip


@pytest.mark.parametrize("content", WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize(
    "name", ["gap.json", "SNN_2bit_ft/gap.json", "SNN_2bit_ft/finetune.json", "snn_eval.txt", "log.jsonl", "raster.npz"]
)
def test_any_content_is_survived(logdir, name, content):
    (logdir / name).write_bytes(content.encode("latin-1"))
    shutil.rmtree(logdir / "generated")
    assert "my_run" in page_of(logdir).text


def test_malformed_lines_are_skipped_and_said_so(logdir):
    for name in ("snn_eval.txt", "log.jsonl"):
        with open(logdir / name, "a", encoding="utf-8") as file:
            file.write('{"stage": "train", "st\n[1]\n\n')
    shown = page_of(logdir)
    assert "snn_eval.txt: 2 malformed lines skipped" in shown.text
    assert "log.jsonl: 2 malformed lines skipped" in shown.text
    assert len(collect(logdir).scores) == 4 and len(collect(logdir).loss) == 30


def test_damaged_images_and_unknown_folders_are_noted(logdir):
    (logdir / "generated" / "trained_ann" / "000001.png").write_bytes(b"no picture")
    (logdir / "generated" / "finetuned_stream" / "settings.json").write_text("[]")
    (logdir / "real.png").write_bytes(b"")
    shown = page_of(logdir)
    assert "000001.png" in shown.text and "finetuned_stream: no usable settings.json" in shown.text
    assert "real.png" in shown.text


def test_score_lines_state_what_makes_them_comparable(logdir):
    with open(logdir / "snn_eval.txt", "a", encoding="utf-8") as file:
        file.write(json.dumps(score_line("converted", AUTO, 25.0, count=64, notes=["too few"])) + "\n")
    shown = page_of(logdir)
    line = score_line("trained", None, 0.0)
    for name in ("extractor", "reference", "date", "sampler"):
        assert line[name] in shown.text
    assert line["checkpoint"][:8] in shown.text
    assert "50 steps" in shown.text and "a note" in shown.text and "too few" in shown.text


@pytest.mark.parametrize("make", [False, True], ids=["missing", "empty"])
def test_nothing_to_report_on(tmp_path, capsys, make):
    folder = tmp_path / "none"
    if make:
        folder.mkdir()
        (folder / "report.html").write_text("an old one")
    with pytest.raises(UserError, match="none"):
        written_report(folder)
    assert main([str(folder)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.out == ""


def test_command_prints_summary_and_path(logdir, capsys):
    for name in ("log.jsonl", "gap.json", "SNN_2bit_ft/gap.json"):
        (logdir / name).unlink()
    assert main([str(logdir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(logdir / "report.html")
    assert [line.split("  ")[0] for line in lines[3:8]] == ["quantized ANN", *["converted SNN"] * 3, "fine-tuned SNN"]


def test_a_page_is_made_without_the_chart_library(logdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it now fails
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for name in [name for name in sys.modules if name.startswith("ann2snn.report.")]:
        monkeypatch.delitem(sys.modules, name)
    made = importlib.import_module("ann2snn.report.html")
    assert "<svg" in made.page(importlib.import_module("ann2snn.report.collect").collect(logdir))


def test_samples_picture_has_a_row_per_strip_and_is_left_out_where_nothing_was_generated(logdir):
    import io
    import shutil

    from PIL import Image

    from ann2snn.report.collect import collect
    from ann2snn.report.grids import sample_groups
    from ann2snn.report.samples import ROW_INCHES, samples_png

    run = collect(logdir)
    strips = next(group for group in sample_groups(run) if group.strips).grids
    picture = Image.open(io.BytesIO(samples_png(run)))
    assert picture.height == int(100 * (ROW_INCHES * len(strips) + 0.1))
    shutil.rmtree(logdir / "generated")
    assert samples_png(collect(logdir)) is None


def test_networks_that_run_alike_are_told_apart_by_their_checkpoints(logdir):
    first = logdir / "generated" / "finetuned_stream"
    shutil.copytree(first, logdir / "generated" / "finetuned_other")
    path = logdir / "generated" / "finetuned_other" / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoint": "feedbeef00"}))
    titles = [grid.title for group in sample_groups(collect(logdir)) for grid in group.grids]
    assert any(title.endswith("(feedbe)") for title in titles) and len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--data_dir=/home/someone/data/cifar", "--data_dir=…/cifar"),
        ("--fid_cache=~/stats/a.npz --bit=2", "--fid_cache=…/a.npz --bit=2"),
        (r"--logdir=C:\Users\someone\run", "--logdir=…/run"),
        ("--logdir=./logs/demo --beta_T=0.02 1/2", "--logdir=./logs/demo --beta_T=0.02 1/2"),
    ],
)
def test_a_page_that_people_share_does_not_tell_the_folders_of_a_machine(text, shown):
    assert shareable(text) == shown


def test_a_browser_is_told_to_fetch_nothing_and_to_run_the_page_s_own_script_alone(written):
    source = written.read_text(encoding="utf-8")
    [policy] = [dict(attrs)["content"] for tag, attrs in Page(source).tags if "http-equiv" in attrs]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    [script] = re.findall(r"<script>(.*?)</script>", source, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["default-src"] == "'none'" and rules["script-src"] == f"'sha256-{digest}'"
    assert script == (Path(ann2snn.report.__file__).parent / "page.js").read_text(encoding="utf-8")
    assert len(script.splitlines()) < 300


def test_pictures_of_evaluate_are_not_shown_as_the_conversions(tmp_path):
    for name in ("ANN", "SNN_T3", "SNN_T3_carried", "interpolate_1_2_8_ann_ddim3", "trajectory_x"):
        write_picture(tmp_path / "images" / f"{name}.png", (42, 22))
    (group,) = sample_groups(collect(tmp_path))
    assert [grid.title for grid in group.grids] == [
        f"images/{name}.png" for name in ("ANN", "SNN_T3", "SNN_T3_carried")
    ]
