"""Files as the reference writes them, made from the golden weights, load and give the golden outputs (1e-5)."""

import pytest
import torch

from ann2snn.checkpoints import checkpoint
from ann2snn.config import SpikingConfig
from ann2snn.convert import SpikingNetwork
from ann2snn.errors import UserError
from ann2snn.nets import UNet
from tests.helpers import SHAPES, assert_close, golden, golden_ann, golden_state

REFERENCE = SpikingConfig("stream", stream_norm="per_step", if_neuron="reference")
TOLERANCE = 1e-5


def spiking_key(name: str) -> str:
    """The renaming rule of the published conversion script."""
    if any(word in name for word in ("main", "shortcut", "head")):
        return name
    *front, before_last, last = name.split(".")
    return ".".join([*front, "block", before_last, last])


def write_training_file(path, state: dict, size: int, ema: dict | None = None) -> None:
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=lambda step: min(step, 5000) / 5000)
    payload = {
        "net_model": state,
        "ema_model": ema or state,
        "sched": scheduler.state_dict(),
        "optim": optimizer.state_dict(),
        "step": 1234,
        "x_T": torch.randn(4, 3, size, size),
    }
    torch.save(payload, path)


@pytest.mark.parametrize(("shape", "size"), [("tiny", 8), ("tiny", 16), ("full", 8)])
def test_training_file_loads_and_gives_the_golden_output(shape, size, tmp_path):
    path = tmp_path / "ckpt.pt"
    write_training_file(path, golden_state(shape), size)
    loaded = checkpoint.load(path, bit=2)
    assert isinstance(loaded.net, UNet) and not loaded.net.training
    assert loaded.step == 1234
    config = loaded.net.config
    assert {key: getattr(config, key) for key in ("ch", "ch_mult", "num_res_blocks")} == {
        key: SHAPES[shape][key] for key in ("ch", "ch_mult", "num_res_blocks")
    }
    assert (config.bits, config.image_size, config.in_channels, config.diffusion_steps) == (2, (size, size), 3, 1000)
    z = golden(f"unet_{shape}_{size}px_bit2")
    with torch.no_grad():
        assert_close(loaded.net(z["x"], z["t"]), z["ann/out"], TOLERANCE)


@pytest.mark.parametrize(("shape", "size"), [("tiny", 8), ("full", 8)])
def test_spiking_file_loads_and_gives_the_golden_output(shape, size, tmp_path):
    path = tmp_path / "converted_snn.pt"
    renamed = {spiking_key(name): value for name, value in golden_state(shape).items()}
    assert "tail.block.1.act_alpha" in renamed and "downblocks.0.block1.block.2.weight" in renamed
    assert "time_embedding.timembedding.block.0.weight" in renamed and "head.weight" in renamed
    torch.save({"ema_model": renamed}, path)
    loaded = checkpoint.load(path, bit=2, image_size=size, spiking=REFERENCE)
    assert isinstance(loaded.net, SpikingNetwork)
    assert loaded.net.spiking == REFERENCE
    z = golden(f"snn_{shape}_{size}px_bit2")
    with torch.no_grad():
        assert_close(loaded.net(z["x"], z["t"]), z["snn/signed/out"], TOLERANCE)


def test_a_spiking_file_runs_layer_synchronously_unless_told_otherwise(tmp_path):
    torch.save({"ema_model": {spiking_key(k): v for k, v in golden_state("tiny").items()}}, tmp_path / "snn.pt")
    loaded = checkpoint.load(tmp_path / "snn.pt", bit=2, image_size=8)
    assert loaded.net.spiking == SpikingConfig()
    z = golden("unet_tiny_8px_bit2")
    with torch.no_grad():
        assert_close(loaded.net(z["x"], z["t"]), z["ann/out"], TOLERANCE)


def test_weights_chooses_between_raw_and_averaged(tmp_path):
    raw = golden_state("tiny")
    averaged = {name: value * 0.5 for name, value in raw.items()}
    write_training_file(tmp_path / "ckpt.pt", raw, 8, ema=averaged)
    for weights, expected in (("net", raw), ("ema", averaged)):
        net = checkpoint.load(tmp_path / "ckpt.pt", bit=2, weights=weights).net
        torch.testing.assert_close(net.head.weight.data, expected["head.weight"], rtol=0, atol=0)


def test_data_parallel_prefixes_are_understood(tmp_path):
    state = {f"module.{name}": value for name, value in golden_state("tiny").items()}
    write_training_file(tmp_path / "ckpt.pt", state, 8)
    net = checkpoint.load(tmp_path / "ckpt.pt", bit=2).net
    assert net.state_dict().keys() == golden_ann("tiny", 8).state_dict().keys()


def test_bits_are_asked_for_because_the_file_does_not_store_them(tmp_path):
    write_training_file(tmp_path / "ckpt.pt", golden_state("tiny"), 8)
    with pytest.raises(UserError, match="--bit"):
        checkpoint.load(tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="--bit=32 contradicts"):
        checkpoint.load(tmp_path / "ckpt.pt", bit=32)


def test_a_full_precision_file_needs_no_bits_and_refuses_others(tmp_path):
    state = {name: value for name, value in golden_state("tiny").items() if not name.endswith("act_alpha")}
    write_training_file(tmp_path / "ckpt.pt", state, 8)
    assert checkpoint.load(tmp_path / "ckpt.pt").net.config.bits == 32
    with pytest.raises(UserError, match="--bit=2 contradicts"):
        checkpoint.load(tmp_path / "ckpt.pt", bit=2)


def test_a_flag_that_contradicts_the_shapes_is_named_with_both_values(tmp_path):
    write_training_file(tmp_path / "ckpt.pt", golden_state("tiny"), 8)
    with pytest.raises(UserError, match=r"--ch_mult=1,2,2,2 .*made with 1,2"):
        checkpoint.load(tmp_path / "ckpt.pt", bit=2, expected={"ch_mult": ("ch_mult", [1, 2, 2, 2])})
