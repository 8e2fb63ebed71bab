"""Flagfiles, command lines, and the JSON files of a run folder from outside."""

import json
import os

import pytest

from ann2snn.arguments import Parser
from ann2snn.errors import UserError
from ann2snn.files.flagfile import check_arguments, expanded
from ann2snn.report.collect import collect
from tests.hostile.contained import contained, refusal, sixteenths, tree
from tests.hostile.corpus import ESCAPE, special_files
from tests.report.run_folder import write_run
from tests.scripts import ROOT, script, train_flags

DEMO = (ROOT / "config" / "train_ANN" / "demo.txt").read_bytes()
FLAGFILES = {
    "junk": bytes(range(256)) * 20,
    "not utf-8": b"--logdir=\xff\xfe\n",
    "nul": b"--logdir=a\0b\n",
    "terminal command": b"--logdir=\x1b[2J\n",
    "100 MB": b"--bit=2\n" * 12_500_000,
    "one line": b"--logdir=" + b"a" * 500_000,
    "loose words": b"hello world\n",
    "unknown flag": b"--btch_size=3\n",
    "out of range": b"--num_images=100000000000000\n",
    "not a number": b"--lr=nan\n",
    "endless": b"--grad_clip=inf\n",
    "vast number": b"--seed=" + b"9" * 6000,
    "wrong value": b"--T=many\n",
    "no path": b"--logdir=" + b"a/" * 2500,
    "no name": b"--logdir=" + b"a" * 300,
    "python": b"--bit=__import__('os').system('touch executed')\n",
}


def refused(done, *words) -> None:
    assert done.returncode == 2 and done.stdout == "", (done.returncode, done.stdout[-300:], done.stderr[-2000:])
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr[-2000:]
    assert done.stderr[:-1].isprintable() and len(done.stderr) < 2000
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize("name", FLAGFILES)
def test_a_hostile_flagfile_is_refused_in_one_line_and_nothing_is_written(name, tmp_path):
    path = tmp_path / "flags.txt"
    path.write_bytes(FLAGFILES[name])
    before = tree(tmp_path)
    refused(script("ANN_train.py", *train_flags(tmp_path / "run", 1), f"--flagfile={path}"))
    assert tree(tmp_path) == before and not (tmp_path / "run").exists() and not (ROOT / "executed").exists()


def test_unknown_flags_in_a_flagfile_suggest_the_nearest(tmp_path):
    path = tmp_path / "flags.txt"
    path.write_bytes(FLAGFILES["unknown flag"])
    refused(script("evaluate.py", f"--flagfile={path}"), "did you mean --batch_size")


def test_flagfiles_that_include_themselves_or_each_other_are_refused(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text(f"--flagfile={one}\n--bit=2\n")
    refused(script("ANN_train.py", f"--flagfile={one}"), "includes itself")
    one.write_text(f"--bit=2\n  --flagfile={two}\n")
    two.write_text(f"--flagfile\n{one}\n")
    with pytest.raises(UserError, match="includes itself"):
        check_arguments(["--train", "-flagfile", str(one)])


def test_flagfiles_that_double_with_every_include_are_refused(tmp_path):
    for level in range(30):
        (tmp_path / f"{level}").write_text(f"--flagfile={tmp_path}/{level + 1}\n" * 2)
    (tmp_path / "30").write_text("--bit=2\n")
    assert "included" in contained(lambda: check_arguments([f"--flagfile={tmp_path}/0"]), seconds=5)


def test_nested_flagfiles_and_every_shipped_one_pass(tmp_path):
    inner, outer = tmp_path / "inner.txt", tmp_path / "outer.txt"
    inner.write_text("# é\r\n--bit=2\t\n")
    outer.write_text(f"--flagfile={inner}\n--flagfile={inner}\n\n")
    check_arguments(["--train", "--flagfile", str(outer), "--flagfile="])
    for path in ROOT.glob("config/*/*.txt"):
        check_arguments([f"--flagfile={path}"])


def test_what_is_no_plain_file_is_refused_as_a_flagfile(tmp_path):
    for what, special in special_files(tmp_path / "special", ".txt").items():
        message = contained(lambda special=special: check_arguments([f"--flagfile={special}"]), seconds=5)
        assert message and str(special) in message, what
    refused(script("SNN_ft.py", f"--flagfile={tmp_path}/special/pipe.txt"), "pipe.txt")


def test_a_flagfile_truncated_at_any_sixteenth_is_read_or_refused(tmp_path):
    """Cut inside a line, a flag may be another one's beginning; no stage may then do more than refuse."""
    path = tmp_path / "flags.txt"
    for part in sixteenths(DEMO):
        path.write_bytes(part)
        refusal(lambda: check_arguments([f"--flagfile={path}"]))
    path.write_bytes(DEMO[: len(DEMO) // 2] + b"--bi")
    refused(script("ANN_train.py", f"--flagfile={path}", "--notrain", f"--logdir={tmp_path}/run"))


@pytest.mark.parametrize(
    "flag",
    [
        f"--logdir={ESCAPE}",
        "--logdir=\udcff",
        "--logdir=" + "a" * 5000,
        "--ft_name=\x07",
        "--\x1b[2J",
        "\x1b]0;title",
        "--num_threads=-1",
        "--sample_size=-5",
        "--gen_images=9999999999",
        "--num_images=0",
        "--lr=-inf",
        "--bit=nan",
        "--bit=1e400",
        "--eta=nan",
        "--img_size=1000000",
        "--num_workers=100000",
        "--seed=-1",
    ],
)
def test_hostile_arguments_are_refused_in_one_line(flag, tmp_path):
    refused(script("ANN_train.py", *train_flags(tmp_path / "run", 1), flag))
    assert list(tmp_path.iterdir()) == []


# ---- a run folder ---------------------------------------------------------------------------------------------------

JSON = {
    "deep": "[" * 100_000,
    "deep object": '{"reports":' * 100_000,
    "vast number": '{"reports": [{"label": ' + "9" * 10_000 + "}]}",
    "wrong types": '{"reports": [{"label": [], "spiking": 3, "blocks": {"a": 1}}], "images": "x", "blocks": 3}',
    "numbers": '{"reports": [1e999, NaN, -Infinity, null], "prediction_gap": [NaN], "blocks": [], "identity": []}',
    "null": "null",
    "not utf-8": b"\xff\xfe\xfa",
    "control": '{"network": "\\u001b[2J\\n", "stage": "train", "step": 1e300, "loss": true}',
}
FILES = ("log.jsonl", "gap.json", "cost.json", "snn_eval.txt", "SNN_2bit_ft/finetune.json", "SNN_2bit_ft/gap.json")


@pytest.mark.parametrize("name", JSON)
def test_a_report_survives_every_hostile_json(name, tmp_path):
    folder = tmp_path / "run"
    write_run(folder)
    settings = [path.relative_to(folder) for path in folder.glob("generated/*/settings.json")]
    content = JSON[name] if isinstance(JSON[name], bytes) else JSON[name].encode()
    for file in (*FILES, *settings):
        (folder / file).write_bytes(content)
    found = collect(folder)
    assert found.notes and all(note.isprintable() for note in found.notes)
    assert found.gaps is None or not found.gaps.reports


def test_special_files_in_a_run_folder_are_passed_over_or_noted(tmp_path):
    for what in ("pipe", "link", "device", "folder", "sparse"):
        folder = tmp_path / what
        write_run(folder)
        for file in FILES[:-2]:
            (folder / file).unlink(missing_ok=True)
            special_files(tmp_path / f"special {what} {file}", ".x")[what].rename(folder / file)
        assert contained(lambda folder=folder: collect(folder), seconds=10) is None, what


def test_a_flagfile_of_a_run_folder_may_be_anything(tmp_path):
    write_run(tmp_path / "run")
    os.mkfifo(tmp_path / "run" / "flagfile.convert.txt")
    (tmp_path / "run" / "flagfile.txt").write_bytes(b"\xff\0" + json.dumps({"a": 1}).encode())
    assert contained(lambda: collect(tmp_path / "run"), seconds=10) is None


def test_a_byte_order_mark_before_the_first_flag_is_passed_over(tmp_path):
    """Editors of Windows put one, and end lines by CR LF."""
    path = tmp_path / "flags.txt"
    path.write_bytes("--bit=4\r\n# café\r\n--ch=8\r\n".encode("utf-8-sig"))
    assert [word for _, word in expanded([f"--flagfile={path}", "--ch=16"])] == ["--bit=4", "--ch=8", "--ch=16"]
    parser = Parser("fad", None, files=True)
    parser.add_argument("--seed", type=int)
    path.write_bytes("--seed 3\r\n".encode("utf-8-sig"))
    assert parser.read([f"@{path}"]).seed == 3
