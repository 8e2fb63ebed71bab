"""A resumed optimizer and schedule go on to the last bit; from a file they take moments and a step, nothing else."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ann2snn.checkpoints import checkpoint
from ann2snn.errors import UserError
from ann2snn.finetune import BlockReport
from ann2snn.training.state import load_optimizer, load_schedule, parse_progress
from tests.helpers import assert_equal
from tests.hostile.corpus import payload


class Run:
    """A tiny training run; `idle` has no gradient, so that Adam keeps no state for it."""

    def __init__(self, lr: float = 1e-2) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
        self.idle = nn.Parameter(torch.ones(3))
        groups = [{"params": self.net.parameters()}, {"params": [self.idle], "lr": lr / 3}]
        self.optimizer = torch.optim.Adam(groups, lr=lr, betas=(0.8, 0.95))
        self.scheduler = LambdaLR(self.optimizer, lambda step: math.cos(step / 9) if step > 3 else (step + 1) / 4)
        self.step = 0

    def go(self, steps: int) -> None:
        for _ in range(steps):
            torch.manual_seed(self.step)
            self.optimizer.zero_grad()
            self.net(torch.randn(2, 1, 8, 8)).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()
            self.step += 1

    def state(self) -> dict:
        return {
            "optim": copy.deepcopy(self.optimizer.state_dict()),
            "sched": self.scheduler.state_dict(),
            "step": self.step,
            "net_model": copy.deepcopy(self.net.state_dict()),
        }

    def take_up(self, state: dict) -> None:
        self.net.load_state_dict(state["net_model"])
        self.step = state["step"]
        load_optimizer(self.optimizer, state["optim"], "x.pt")
        load_schedule(self.scheduler, state["sched"], self.step, "x.pt")


@pytest.mark.parametrize("stop", [0, 1, 3, 7])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(stop, tmp_path, recwarn):
    whole, first, second = Run(), Run(), Run()
    whole.go(12)
    first.go(stop)
    checkpoint.save(tmp_path / "c.pt", payload(**first.state()))
    second.take_up(checkpoint.read(tmp_path / "c.pt"))
    second.go(12 - stop)
    for a, b in zip(whole.net.parameters(), second.net.parameters(), strict=True):
        assert_equal(a, b)
    ours, theirs = whole.optimizer.state_dict(), second.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys() and 4 not in ours["state"]
    for index, entry in ours["state"].items():
        for name, value in entry.items():
            assert_equal(value, theirs["state"][index][name])
    assert whole.scheduler.get_last_lr() == second.scheduler.get_last_lr()
    assert whole.scheduler.last_epoch == second.scheduler.last_epoch == 12
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


def test_hyperparameters_of_the_file_are_not_taken():
    first, second = Run(lr=1e-2), Run(lr=5e-3)
    first.go(5)
    state = first.state()
    state["optim"]["param_groups"][0] |= {"betas": (0.0, 0.0), "weight_decay": 9.0, "maximize": True, "surprise": 1}
    state["sched"] |= {"lr_lambdas": [{"__call__": 3}], "base_lrs": [1e9], "step": 3, "optimizer": None}
    second.take_up(state)
    group = second.optimizer.param_groups[0]
    assert group["betas"] == (0.8, 0.95) and group["weight_decay"] == 0 and not group["maximize"]
    assert "surprise" not in group and group["lr"] == 5e-3 * math.cos(5 / 9)
    assert second.scheduler.base_lrs == [5e-3, 5e-3 / 3] and callable(second.scheduler.step)


def entry(state, name, value):
    state["state"][0][name] = value


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda s: s.pop("state"), "no optimizer state"),
        (lambda s: s.update(state=[1]), "no optimizer state"),
        (lambda s: s["state"].update({99: s["state"][0]}), "parameter '99'"),
        (lambda s: s["state"].update({-1: s["state"][0]}), "parameter '-1'"),
        (lambda s: s["state"].update({"a": 1}), "parameter 'a'"),
        (lambda s: s["state"].update({0: [1]}), "entry 0"),
        (lambda s: s["state"][0].pop("exp_avg"), "entry 0"),
        (lambda s: entry(s, "momentum_buffer", torch.zeros(1)), "entry 0"),
        (lambda s: entry(s, "exp_avg", torch.zeros(3)), "exp_avg of parameter 0 is no tensor [4, 1, 3, 3]"),
        (lambda s: entry(s, "exp_avg", torch.zeros(4, 1, 3, 3, dtype=torch.int64)), "exp_avg of parameter 0"),
        (lambda s: entry(s, "exp_avg", torch.full((4, 1, 3, 3), math.nan)), "impossible values"),
        (lambda s: entry(s, "exp_avg_sq", torch.full((4, 1, 3, 3), math.inf)), "impossible values"),
        (lambda s: entry(s, "exp_avg_sq", -torch.ones(4, 1, 3, 3)), "impossible values"),
        (lambda s: entry(s, "step", torch.tensor(-1.0)), "impossible values"),
        (lambda s: entry(s, "step", 5), "step of parameter 0"),
        (lambda s: entry(s, "step", "soon"), "step of parameter 0"),
    ],
)
def test_another_optimizers_state_is_refused_and_changes_nothing(edit, word):
    run = Run()
    run.go(2)
    state = run.state()["optim"]
    before = copy.deepcopy(run.optimizer.state_dict())
    edit(state)
    with pytest.raises(UserError, match=r"cannot resume from x\.pt: ") as error:
        load_optimizer(run.optimizer, state, "x.pt")
    assert word in str(error.value)
    assert before["state"].keys() == run.optimizer.state_dict()["state"].keys()
    assert_equal(before["state"][0]["exp_avg"], run.optimizer.state_dict()["state"][0]["exp_avg"])


@pytest.mark.parametrize("state", [None, [], {}, {"last_epoch": 4}, {"last_epoch": True}, {"last_epoch": "5"}])
def test_a_schedule_at_another_step_is_refused(state):
    run = Run()
    run.go(5)
    with pytest.raises(UserError, match=r"cannot resume from x\.pt: "):
        load_schedule(run.scheduler, state, 5, "x.pt")
    load_schedule(run.scheduler, {"last_epoch": 5}, 5, "x.pt")


REPORT = {"block": "head", "gap_before": 0.5, "gap_after": 0.25, "best_step": 3, "steps": 4, "seconds": 1.5}


def test_progress_comes_back():
    reports, gaps = parse_progress({"reports": [REPORT], "gaps": [0.5, 1]}, ["head", "tail"], "x.pt")
    assert reports == [BlockReport(**REPORT)] and gaps == [0.5, 1.0]
    assert parse_progress({"reports": [], "gaps": [0.5]}, ["head"], "x.pt") == ([], [0.5])


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"reports": 3, "gaps": []},
        {"reports": [REPORT], "gaps": [0.5]},
        {"reports": [], "gaps": []},
        {"reports": [], "gaps": [math.nan]},
        {"reports": [], "gaps": ["0.5"]},
        {"reports": [], "gaps": [True]},
        {"reports": [REPORT | {"block": "tail"}], "gaps": [1, 2]},
        {"reports": [REPORT | {"block": ["head"]}], "gaps": [1, 2]},
        {"reports": [REPORT | {"gap_after": None}], "gaps": [1, 2]},
        {"reports": [REPORT | {"seconds": -1.0}], "gaps": [1, 2]},
        {"reports": [REPORT | {"steps": 2.5}], "gaps": [1, 2]},
        {"reports": [REPORT | {"surplus": 1}], "gaps": [1, 2]},
        {"reports": [{"block": "head"}], "gaps": [1, 2]},
        {"reports": [["head"]], "gaps": [1, 2]},
        {"reports": [REPORT, REPORT | {"block": "tail"}, REPORT], "gaps": [1, 2, 3, 4]},
    ],
)
def test_damaged_progress_is_refused(raw):
    with pytest.raises(UserError, match=r"cannot resume from x\.pt: "):
        parse_progress(raw, ["head", "tail"], "x.pt")
