"""Weights & Biases gets what the other logs get; whatever it does, the run goes on."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from ann2snn.run.lines import read_log
from ann2snn.run.log import RunLog
from ann2snn.run.wandb import run_id

GREY = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
COLOUR = torch.arange(192, dtype=torch.uint8).reshape(3, 8, 8)


class Fake(ModuleType):
    """Remembers the calls of the package; raises in the one named `broken`."""

    def __init__(self, broken: str = "", step: int = 0) -> None:
        super().__init__("wandb")
        self.broken, self.step, self.calls = broken, step, []

    def _called(self, name: str, /, **arguments: object) -> None:
        self.calls.append((name, arguments))
        if name == self.broken:
            raise RuntimeError("the server is\non fire")

    def init(self, **arguments: object) -> "Fake":
        self._called("init", **arguments)
        return self

    def log(self, values: dict, step: int) -> None:
        self._called("log", values=values, step=step)

    def Image(self, picture: object) -> np.ndarray:  # noqa: N802
        return np.asarray(picture)

    def finish(self) -> None:
        self._called("finish")

    @property
    def logged(self) -> list[tuple[int, dict]]:
        return [(call["step"], call["values"]) for name, call in self.calls if name == "log"]


@pytest.fixture
def install(monkeypatch):
    def put(fake: ModuleType | None) -> ModuleType | None:
        monkeypatch.setitem(sys.modules, "wandb", fake)  # None: importing it fails, as where it is not installed
        return fake

    return put


def write(folder, **options) -> None:
    log = RunLog(folder, "train", **options)
    log.scalars(0, loss=1.5, lr=0.5)
    log.image(0, "sample", COLOUR)
    log.scalars(1, loss=0.5)
    log.close()


def test_it_receives_settings_scalars_pictures_and_the_end(tmp_path, install, capsys):
    fake, settings = install(Fake()), {"unet": {"ch": 8}}
    write(tmp_path, wandb="spikes", config=settings)
    first, *_, last = fake.calls
    name, how = first
    assert name == "init" and how.pop("id") == run_id(tmp_path)
    assert how == {
        "project": "spikes",
        "name": tmp_path.name,
        "dir": str(tmp_path),
        "config": settings,
        "resume": "allow",
    }
    assert last == ("finish", {})
    assert fake.logged[0] == (0, {"loss": 1.5, "lr": 0.5}) and fake.logged[2] == (1, {"loss": 0.5})
    step, values = fake.logged[1]
    assert step == 0 and np.array_equal(values["sample"], COLOUR.permute(1, 2, 0).numpy())
    assert capsys.readouterr().err == ""


def test_grey_pictures_have_no_channels(tmp_path, install):
    fake = install(Fake())
    log = RunLog(tmp_path, "train", wandb="spikes")
    log.image(3, "sample", GREY)
    [(step, values)] = fake.logged
    assert step == 3 and np.array_equal(values["sample"], GREY[0].numpy())


def test_nothing_goes_to_it_unasked(tmp_path, install):
    fake = install(Fake())
    write(tmp_path)
    assert fake.calls == []


@pytest.mark.parametrize("module", [None, ModuleType("wandb")], ids=["absent", "a folder of that name"])
def test_where_it_is_not_installed_nothing_is_said(tmp_path, install, capsys, module):
    install(module)
    write(tmp_path, wandb="spikes")
    told = capsys.readouterr()
    assert told.err == told.out == "" and len(read_log(tmp_path / "log.jsonl")) == 2


@pytest.mark.parametrize(("broken", "calls"), [("init", 1), ("log", 2), ("finish", 5)])
def test_whatever_it_raises_is_one_warning_and_the_end_of_it(tmp_path, install, capsys, broken, calls):
    fake = install(Fake(broken))
    write(tmp_path, wandb="spikes")
    assert [name for name, _ in fake.calls].count(broken) == 1 and len(fake.calls) == calls
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("WARNING: ") and "Weights & Biases" in line and "the server is on fire" in line
    assert [entry["step"] for entry in read_log(tmp_path / "log.jsonl")] == [0, 1]


def test_a_broken_installation_is_a_warning(tmp_path, monkeypatch, capsys):
    broken = tmp_path / "packages"
    broken.mkdir()
    (broken / "wandb.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(broken)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    write(tmp_path, wandb="spikes")
    [line] = capsys.readouterr().err.splitlines()
    assert "a_module_that_is_not_there" in line


def test_steps_never_fall_and_what_a_resumed_run_repeats_is_left_out(tmp_path, install):
    """The package drops what comes with a smaller step than before."""
    fake = install(Fake(step=5))
    log = RunLog(tmp_path, "train", start_step=4, wandb="spikes")
    log.image(0, "real", GREY)
    for step in (4, 5, 6):
        log.scalars(step, loss=float(step))
    log.image(7, "sample", GREY)
    log.scalars(6, FID=2.0)  # of the same training step as the picture, which counts finished steps
    assert [step for step, _ in fake.logged] == [5, 6, 7, 7] and fake.logged[-1][1] == {"FID": 2.0}


def test_a_folder_has_one_identity(tmp_path, monkeypatch):
    a, b = tmp_path / "a b/ü", tmp_path / "c" / "ü"
    for folder in (a, b):
        folder.mkdir(parents=True)
    monkeypatch.chdir(a.parent)
    assert run_id(a) == run_id(a.parent / "." / "ü") == run_id(a.relative_to(a.parent)) != run_id(b)
    assert set(run_id(a)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
