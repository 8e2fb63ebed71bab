"""The command `ann2snn` and every `python -m` program: answered before torch is imported, in and outside a checkout."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ann2snn
from ann2snn import signals
from ann2snn.arguments import exit_code_of
from ann2snn.commands import demo
from ann2snn.commands.table import COMMANDS
from ann2snn.files.flagfile import check_arguments, flagfile_path
from tests.scripts import ROOT
from tests.test_architecture import SCRIPTS

MODULES = ["ann2snn"] + [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in sorted(ROOT.glob("ann2snn/*/**/*.py")) + sorted(ROOT.glob("ann2snn/*.py"))
    if path != ROOT / "ann2snn/__main__.py" and '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Start Python with arguments in an empty folder, where importing torch or torchvision fails."""
    stubs = tmp_path_factory.mktemp("stubs")
    for name in ("torch", "torchvision"):
        (stubs / f"{name}.py").write_text("raise AssertionError('imported')\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(stubs), str(ROOT)])}

    def started(*arguments: str) -> subprocess.CompletedProcess:
        folder = tmp_path_factory.mktemp("empty")
        done = subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
        )
        assert not list(folder.iterdir())
        return done

    return started


def test_the_programs_are_found():
    assert {"ann2snn", "ann2snn.fad", "ann2snn.report", "ann2snn.toy"} <= set(MODULES)


@pytest.mark.parametrize("command", [*MODULES, *(f"ann2snn {name}" for name in COMMANDS)])
def test_help_and_typos_are_answered_without_torch(run, command):
    done = run("-m", *command.split(), "--help")
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 4, done.stderr
    typo = run("-m", *command.split(), "--nonsence")
    assert typo.returncode == 2 and typo.stdout == "", typo.stderr
    assert re.fullmatch(r"error: .+\n", typo.stderr), typo.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_and_commands_share_their_help(run, name):
    command = next(command for command, known in COMMANDS.items() if known.script == name)
    own, other = run(str(ROOT / name), "--help"), run("-m", "ann2snn", command, "--help")
    for known, about in COMMANDS.items():
        own.stdout = own.stdout.replace(f"python {about.script} ", f"ann2snn {known} ") if about.script else own.stdout
    assert other.stdout == own.stdout and f"ann2snn {command} --flagfile config/" in other.stdout


def test_alone_it_lists_what_there_is(run):
    alone, asked = run("-m", "ann2snn"), run("-m", "ann2snn", "--help")
    assert alone.returncode == 0 and alone.stdout == asked.stdout
    listed = re.findall(r"^  (\S+) +\S", alone.stdout, re.MULTILINE)
    assert listed == list(COMMANDS)
    assert {"train", "train-snn", "convert", "finetune", "evaluate", "report", "export", "demo"} <= set(listed)
    assert run("-m", "ann2snn", "--version").stdout == f"ann2snn {ann2snn.__version__}\n"


@pytest.mark.parametrize(("word", "hint"), [("trian", "train"), ("evalute", "evaluate"), ("\x1b[2J", "--help")])
def test_an_unknown_command_is_refused_in_one_line(run, word, hint):
    done = run("-m", "ann2snn", word)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and hint in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr[:-1].isprintable()


def test_version_and_requirements_are_said_once():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or newer")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert project["dynamic"] == ["version"]
    assert f"version: {ann2snn.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    needed = [*project["dependencies"], *extras["report"], *extras["lite0"]]
    assert sorted((ROOT / "requirements.txt").read_text().split()) == sorted(needed)
    assert extras["demo"] == ["ann2snn[report,lite0]"]


# ---- flagfiles ------------------------------------------------------------------------------------------------------

DEMO = "config/train_ANN/demo.txt"


def test_a_shipped_flagfile_is_found_where_the_folder_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / DEMO
    assert flagfile_path(DEMO) == flagfile_path(f"./{DEMO}") == flagfile_path(f" {DEMO} ") == str(shipped)
    assert check_arguments(["--flagfile", DEMO, "--seed=1"]) == [str(shipped)]
    others = ["train_ANN/demo.txt", "config/no.txt", "config", "config/../setup.py", f"{tmp_path}/{DEMO}", "config/\0"]
    assert [flagfile_path(name) for name in others] == others
    assert flagfile_path("config/" + "x" * 5000) == "config/" + "x" * 5000
    own = tmp_path / DEMO
    own.parent.mkdir(parents=True)
    own.write_text("--seed=3\n")
    assert flagfile_path(DEMO) == DEMO and check_arguments([f"--flagfile={DEMO}"]) == [str(own)]


@pytest.mark.parametrize("inside", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_first_line_says_which_flagfile_was_used(tmp_path, monkeypatch, inside):
    """Refused later, for want of a checkpoint."""
    arguments = ["-m", "ann2snn", "convert", "--flagfile", "config/SNN_convert/demo.txt", f"--logdir={tmp_path}/no"]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT if inside else tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "ckpt.pt" in done.stderr
    line = f"flagfile: {ROOT}/config/SNN_convert/demo.txt, as shipped\n"
    assert done.stdout.startswith(line) != inside


# ---- the demo -------------------------------------------------------------------------------------------------------


def test_the_demo_is_written_once_and_names_what_there_is():
    recipe = (ROOT / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0].splitlines()
    assert recipe[1:] == ["\t$(PY) -m ann2snn demo"]
    for step in demo.STEPS:
        name, *arguments = step.command.split()
        assert name in COMMANDS
        assert all((ROOT / word).is_file() for word in arguments if word.startswith("config/"))


def test_the_demo_scores_real_images_the_quantized_network_and_its_spiking_one_on_the_same_terms():
    scored = [
        step.command for step in demo.STEPS if "SNN_evaluate" in step.command and "make_stats" not in step.command
    ]
    for name, ann in (("shipped", "fashion-mnist-32-4bit"), ("demo", f"{demo.DEMO}/ckpt.pt")):
        start = f"evaluate --flagfile config/SNN_evaluate/{name}.txt"
        added = [command.removeprefix(start).split() for command in scored if command.startswith(start)]
        assert any("--score_data" in flags for flags in added) and any(ann in flags for flags in added)
        assert any("--eval_model_path" not in flags and "--score_data" not in flags for flags in added)
        assert not {"--num_images", "--sampler_steps", "--eta", "--seed"} & {flag for flags in added for flag in flags}


@pytest.mark.parametrize(("there", "step"), [("trajectory.npz", 0), ("stats.npz", 1)])
def test_the_demo_runs_in_order_leaves_out_what_is_made_and_stops_at_a_failure(tmp_path, monkeypatch, there, step):
    monkeypatch.chdir(tmp_path)
    ran = []
    monkeypatch.setattr(demo, "_run", lambda command: ran.append(command) or (7 if len(ran) == 4 else 0))
    made = tmp_path / demo.SHIPPED / there
    made.parent.mkdir(parents=True)
    made.touch()
    assert demo.main([]) == 7
    expected = [other.command.split() for other in demo.STEPS if other is not demo.STEPS[step]][:4]
    assert ran == [[sys.executable, "-m", "ann2snn", *words] for words in expected]


def test_the_demo_says_first_which_packages_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert demo.main([]) == 2
    error = capsys.readouterr().err
    assert "matplotlib" in error and "ann2snn[report]" in error and not list(Path(tmp_path).iterdir())


@pytest.mark.parametrize(("number", "answer", "code"), [("SIGTERM", 5, 5), ("SIGINT", 6, 6), ("SIGHUP", 0, 129)])
def test_a_signal_reaches_the_step_that_runs_and_ends_the_demo(tmp_path, number, answer, code):
    """Of a demo without a terminal, which would send Ctrl-C to both; also where the step was just done."""
    program = (
        "import sys; from ann2snn.commands.demo import _run\n"
        f"child = 'import os, signal, sys, time; signal.signal(signal.{number}, lambda *_: sys.exit({answer}));'\n"
        f"child += 'os.kill(os.getppid(), signal.{number}); time.sleep(60)'\n"
        "sys.exit(_run([sys.executable, '-c', child]))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, timeout=60, start_new_session=True
    )
    assert done.returncode == code


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        *((number, 128 + number, "") for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 2, "--batch_size"),
        (MemoryError(), 2, "--batch_size"),
        (OSError(errno.EIO, "Input/output error", "data/x.png"), 2, "data/x.png: Input/output error"),
    ],
    ids=str,
)
def test_commands_end_without_a_traceback_when_they_are_stopped_or_the_system_refuses(capsys, fault, code, said):
    def main() -> None:
        if isinstance(fault, Exception):
            raise fault
        os.kill(os.getpid(), fault)
        time.sleep(10)

    before = {number: signal.getsignal(number) for number in signals.STOPPING}
    assert exit_code_of(main) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == (code == 2)
    assert {number: signal.getsignal(number) for number in signals.STOPPING} == before
    with pytest.raises(KeyError):  # a fault of the program is one
        exit_code_of(lambda: {}["nothing"])


def test_a_checkout_is_importable_from_anywhere_after_make_install():
    """By the installation, not by the working directory."""
    recipe = (ROOT / "Makefile").read_text().split("\n$(STAMP):")[1].split("\n\n")[0]
    assert "pip install -q --no-deps -e ." in recipe


@pytest.mark.parametrize("network", ["fashion-mnist-32-4bit"])
def test_export_writes_a_folder_that_loads(tmp_path, monkeypatch, network, capsys):
    import torch

    from ann2snn.commands import export

    monkeypatch.chdir(tmp_path)
    assert export.main([network, "net"]) == 0 and "net: " in capsys.readouterr().out
    written, shipped = ann2snn.load("net").state_dict(), ann2snn.pretrained(network).state_dict()
    assert written.keys() == shipped.keys() and all(torch.equal(written[key], shipped[key]) for key in shipped)
    assert export.main([network, "net"]) == 2 and "overwritten" in capsys.readouterr().err
    assert export.main(["no.pt", "other"]) == 2 and "no.pt" in capsys.readouterr().err
