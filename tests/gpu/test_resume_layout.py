"""A run that goes on with another memory layout, as between CPU and GPU, goes on as it would have gone on."""

import copy

import pytest
import torch

from ann2snn.checkpoints import checkpoint
from ann2snn.config import DiffusionConfig, TrainConfig
from ann2snn.distributed import runtime
from ann2snn.distributed.world import ALONE
from ann2snn.training import trainer as trainer_module
from ann2snn.training.state import load_optimizer
from ann2snn.training.trainer import Trainer
from tests.gpu.networks import CONFIGS, STEPS

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def _adam(layout: torch.memory_format, fused: bool) -> tuple[torch.nn.Parameter, torch.optim.Adam]:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=layout))
    return weight, torch.optim.Adam([weight], lr=0.1, fused=fused)


def _go(weight: torch.Tensor, optimizer: torch.optim.Adam, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        gradient = torch.randn(6, 4, 3, 3)
        weight.grad = torch.empty_like(weight).copy_(gradient)
        optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("before", "after"), [("contiguous", "channels_last"), ("channels_last", "contiguous")])
def test_moments_take_the_layout_of_their_parameter(before, after, fused):
    whole, first, second = (_adam(LAYOUTS[name], fused) for name in (after, before, after))
    _go(*whole, range(6))
    _go(*first, range(3))
    state = copy.deepcopy(first[1].state_dict())
    second[0].data.copy_(first[0].data)
    load_optimizer(second[1], state, "x.pt")
    for name in ("exp_avg", "exp_avg_sq"):
        moment = second[1].state[second[0]][name]
        assert moment.stride() == second[0].stride()
        assert torch.equal(moment, first[1].state[first[0]][name])
    _go(*second, range(3, 6))
    assert torch.equal(second[0], whole[0])


@pytest.mark.parametrize(("before", "after"), [("contiguous", "channels_last"), ("channels_last", "contiguous")])
@pytest.mark.parametrize("name", ["unet 2 bits", "attention"])
def test_a_training_resumed_with_another_layout_goes_on(name, before, after, monkeypatch, tmp_path):
    def trainer(layout: str) -> Trainer:
        for module in (runtime, trainer_module):
            monkeypatch.setattr(module, "layout_for", lambda device: LAYOUTS[layout])
        train = TrainConfig(batch_size=4, warmup=0, lr=1e-3, seed=1, act_init="2")
        made = Trainer(CONFIGS[name], DiffusionConfig(diffusion_steps=STEPS), train, ALONE)
        made.initialize_activations(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
        return made

    def go(trainer: Trainer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(100 + step)
            trainer.train_step(torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8))

    first = trainer(before)
    go(first, range(2))
    checkpoint.save(tmp_path / "ckpt.pt", first.payload(torch.zeros(1, 1, 8, 8)))
    second = trainer(after)
    second.restore(tmp_path / "ckpt.pt")
    go(first, range(2, 4))
    go(second, range(2, 4))
    for parameter, state in second.optimizer.state.items():
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()
    for ours, theirs in zip(second.net.parameters(), first.net.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5)
