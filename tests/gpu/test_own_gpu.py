"""Which GPU a process of many takes, and how long it waits for the others: what it asks torch for, which has no GPU."""

import os
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ann2snn.distributed import world
from ann2snn.errors import UserError

PLACE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def gpus(monkeypatch):
    """f(visible, **environment) → what `join` asked torch for, on a machine that shows so many GPUs."""

    def joined(visible: int, uuid: str | None = "a", store: dist.Store | None = None, **environment: str) -> dict:
        asked = {}
        for name, value in (PLACE | environment).items():
            monkeypatch.setenv(name, value)
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = store or dist.HashStore()
        monkeypatch.setattr(world, "choose_device", lambda name: torch.device("cuda"))
        monkeypatch.setattr(world, "meet", lambda: (store, rank, size))
        monkeypatch.setattr(world.World, "tie", lambda self: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.update(device=device))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuid))
        monkeypatch.setattr(dist, "init_process_group", lambda *backend, **how: asked.update(engine=(backend, how)))
        monkeypatch.setattr(dist, "new_group", lambda **how: asked.update(group=how) or how["backend"])
        monkeypatch.setattr(world.sys, "stdout", world.sys.stdout)
        asked["world"] = world.join("cuda")
        return asked

    yield joined
    world._joined = world.ALONE


@pytest.mark.parametrize(
    ("visible", "local", "wanted"), [(1, "0", 0), (1, "3", 0), (4, "0", 0), (4, "3", 3), (8, "5", 5)]
)
def test_its_own_of_many_or_the_one_it_sees(gpus, visible, local, wanted):
    asked = gpus(visible, RANK=local, LOCAL_RANK=local, WORLD_SIZE="8")
    assert asked["world"].device == asked["device"] == torch.device("cuda", wanted)


@pytest.mark.parametrize("visible", [2, 3])
def test_more_processes_than_gpus_are_refused(gpus, visible):
    with pytest.raises(UserError, match=f"process 3 of this machine finds {visible} visible GPUs"):
        gpus(visible, RANK="3", LOCAL_RANK="3", WORLD_SIZE="8")


def test_two_processes_that_see_the_same_gpu_are_refused(gpus):
    """As torchrun with two processes on a machine with one GPU."""
    store = dist.HashStore()
    gpus(1, "a", store, RANK="0", LOCAL_RANK="0", WORLD_SIZE="2")
    with pytest.raises(UserError, match="process 1 has the GPU of another one"):
        gpus(1, "a", store, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")
    assert gpus(1, "b", store, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")["device"].index == 0
    assert gpus(1, None, store, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")["device"].index == 0


@pytest.mark.parametrize(("variable", "minutes"), [({}, 30), ({"ANN2SNN_NCCL_TIMEOUT": "5"}, 5)])
def test_gpus_wait_for_minutes_and_cpus_for_days(gpus, variable, minutes):
    asked = gpus(1, **variable)
    backend, how = asked["engine"]
    assert backend == ("cpu:gloo,cuda:nccl",) and how["timeout"] == timedelta(minutes=minutes)
    assert asked["group"] == {"backend": "gloo", "timeout": world.PATIENCE}
    assert asked["world"].group == "gloo"


@pytest.mark.parametrize("value", ["0", "-1", "soon", "10081"])
def test_a_patience_that_is_none_is_refused(gpus, value):
    with pytest.raises(UserError, match=f"ANN2SNN_NCCL_TIMEOUT={value}"):
        gpus(1, ANN2SNN_NCCL_TIMEOUT=value)


def test_what_travels_on_the_cpu_waits_by_its_own_group(monkeypatch):
    """Not by the one that gradients are averaged in."""
    of_two, groups = world.World(torch.device("cpu"), 0, 2, dist.HashStore()), []
    of_two.group = "patient"
    for name in ("all_reduce", "all_gather"):
        monkeypatch.setattr(dist, name, lambda *args, group=None, **how: groups.append(group))
    of_two.largest(1)
    of_two.sum(torch.zeros(1))
    monkeypatch.setattr(torch, "empty_like", lambda like: like)
    of_two.collect(torch.zeros(3, 2))
    assert groups == ["patient"] * 4
    groups.clear()
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    of_two.mean_gradients([weight])
    assert groups == [None]
