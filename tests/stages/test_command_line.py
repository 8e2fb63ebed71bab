"""The command line: which of two sources of a flag wins, what is no flag of ours, and how quickly it answers."""

import importlib
import os
import subprocess
import sys

import pytest

from ann2snn.cli import flags
from ann2snn.config import ARCHS, CORRECTION_NAMES, SURROGATE_NAMES
from ann2snn.errors import UserError
from ann2snn.kernels import SURROGATES
from ann2snn.nets.architecture import CONFIGS
from ann2snn.nets.sddpm import CORRECTIONS
from tests.scripts import ROOT, script, train_flags
from tests.stages.test_bad_input import refused

SCRIPTS = ["ANN_train.py", "SNN_train.py", "SNN_conversion.py", "SNN_ft.py", "evaluate.py"]


@pytest.fixture
def table():
    """The flag table, defined for this test alone."""
    before = set(flags.FLAGS)
    flags.define()
    yield flags.FLAGS
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


@pytest.fixture
def files(tmp_path):
    """Flagfiles: one, one that is included by another, and that other one."""
    (tmp_path / "a.txt").write_text("--ch_mult=1\n--ch_mult=2\n--attn=0\n--ft_learn=weights\n--lr=1\n# --lr=2\n")
    (tmp_path / "inner.txt").write_text("--ch_mult\n3\n--lr=3\n")
    (tmp_path / "outer.txt").write_text(
        f"--ch_mult=9\n\n// words\n--flagfile={tmp_path}/inner.txt\n--attn=1\n--attn=2\n"
    )
    return {name: f"--flagfile={tmp_path}/{name}.txt" for name in ("a", "outer")}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("a", {"ch_mult": [1, 2], "attn": [0]}),
        ("a --ch_mult=2", {"ch_mult": [2], "attn": [0], "lr": 1.0}),
        ("a --ch_mult=2 --ch_mult 4 -ch_mult=4", {"ch_mult": [2, 4, 4], "attn": [0]}),
        ("a --attn 1 --lr=5", {"ch_mult": [1, 2], "attn": [1], "lr": 5.0}),
        ("--ch_mult=7 a", {"ch_mult": [1, 2]}),
        ("--lr=7 a", {"lr": 1.0}),
        ("--ch_mult=7 --flip a --ch_mult=8", {"ch_mult": [7, 8], "flip": True}),
        ("a outer", {"ch_mult": [3], "attn": [1, 2], "lr": 3.0}),
        ("outer a", {"ch_mult": [1, 2], "attn": [0], "lr": 1.0}),
        ("outer --attn=0", {"ch_mult": [3], "attn": [0]}),
        ("a --ft_learn=charges", {"ft_learn": ["charges"]}),
        ("", {"ch_mult": [1, 2, 2, 2], "attn": [1]}),
    ],
)
def test_the_later_source_wins_lists_included(table, files, arguments, expected):
    assert table(["x", *(files.get(word, word) for word in arguments.split())]) == ["x"]
    assert {name: table[name].value for name in expected} == expected
    assert flags.given("ch_mult") == ("ch_mult" in arguments or bool({"a", "outer"} & set(arguments.split())))


@pytest.mark.parametrize("words", ["--ch_mult", "--flagfile", "--flagfile=", "--ch_mult=two", "--notrain=1"])
def test_what_is_cut_short_is_refused(tmp_path, words):
    refused(script("ANN_train.py", *train_flags(tmp_path / "run", 2), words), words.partition("=")[0].strip("-")[:4])
    assert not (tmp_path / "run").exists()


HIDDEN = [
    "only_check_args",
    "run_with_profiling",
    "run_with_pdb",
    "pdb",
    "pdb_post_mortem",
    "use_cprofile_for_profiling",
]
HIDDEN += ["profile_file=FILE", "helpxml", "undefok=sampel", "log_dir=DIR", "verbosity=1", "v=1", "logtostderr"]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("where", ["flagfile", "command line"])
def test_flags_that_help_does_not_show_are_refused(tmp_path, hidden, where):
    importlib.import_module("absl.app")  # brings flags of its own
    precious = tmp_path / "precious"
    precious.write_text("kept")
    flag = "--" + hidden.replace("FILE", str(precious)).replace("DIR", str(tmp_path))
    file = tmp_path / "flags.txt"
    file.write_text(flag + "\n")
    given = [f"--flagfile={file}"] if where == "flagfile" else [flag]
    refused(script("ANN_train.py", *train_flags(tmp_path / "run", 2), *given), f"--{hidden.partition('=')[0]}")
    assert precious.read_text() == "kept" and not (tmp_path / "run").exists()


def test_help_says_which_source_wins(table):
    text = " ".join(flags.help_text("x").split())
    assert "those of the last source replace those of sources before it" in text


def test_flags_know_the_names_that_networks_and_kernels_have():
    assert (
        list(ARCHS) == list(CONFIGS) and SURROGATE_NAMES == tuple(SURROGATES) and CORRECTION_NAMES == tuple(CORRECTIONS)
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_typos_are_answered_at_once(name):
    """CPU time, which a loaded machine does not change."""
    for flag, code in (("--help", 0), ("--sampel_step=3", 2)):
        child = subprocess.Popen(
            [sys.executable, name, flag], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        message = child.stderr.read()
        child.stderr.close()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == code, message
        assert used.ru_utime + used.ru_stime < 1.0, flag


@pytest.mark.parametrize("name", [*SCRIPTS, "-m ann2snn.report"])
def test_outside_the_virtual_environment_one_line_says_so(name):
    """-S leaves out the installed packages."""
    done = subprocess.run([sys.executable, "-S", *name.split(), "--help"], cwd=ROOT, capture_output=True, text=True)
    refused(done, "torch", "make install", ".venv/bin/python")


def test_importing_the_package_there_raises_what_says_so(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import ann2snn"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "ImportError" in done.stderr and "make install" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_that_cannot_show_a_sign_shows_another(encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "evaluate.py", "--help"], cwd=ROOT, capture_output=True, env=environment, check=True
    )
    assert b"2^b \\u2212 1" in done.stdout
    done = subprocess.run(
        [sys.executable, "evaluate.py", "--bit=→"], cwd=ROOT, capture_output=True, env=environment | {"PYTHONUTF8": "1"}
    )
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1


def test_help_may_be_cut_off():
    done = subprocess.run(f"{sys.executable} evaluate.py --help | head -1", shell=True, cwd=ROOT, capture_output=True)
    assert done.stdout.startswith(b"Generate") and done.stderr == b""


def test_the_package_is_whole_though_its_parts_come_late():
    code = (
        "import sys, ann2snn; assert 'torch' not in sys.modules; import ann2snn.stages.convert, ann2snn.cost;"
        "assert callable(ann2snn.convert) and callable(ann2snn.cost) and set(ann2snn.__all__) <= set(dir(ann2snn));"
        "assert all(callable(getattr(ann2snn, name)) for name in ann2snn.__all__);"
        "from ann2snn import convert, cost; assert callable(convert) and callable(cost)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    import ann2snn

    with pytest.raises(AttributeError, match="nothing"):
        _ = ann2snn.nothing
    assert issubclass(UserError, ValueError)
