"""Checkpoints of directly trained networks whose settings, statistics or kind are not what training writes."""

import time

import pytest
import torch

from ann2snn.checkpoints import checkpoint
from ann2snn.config import MAX_IMAGE_SIZE
from ann2snn.nets.architecture import build_network
from ann2snn.nets.fsddim import FSDDIMConfig
from ann2snn.nets.sddpm import SDDPMConfig
from tests.hostile.contained import contained, tree
from tests.hostile.corpus import ESCAPE
from tests.hostile.corpus import payload as ann_payload
from tests.scripts import SAMPLING, script

SHAPE = {"in_channels": 1, "image_size": 8, "ch": 4, "ch_mult": (1, 2), "num_res_blocks": 1, "diffusion_steps": 20}
CONFIGS = {"sddpm": SDDPMConfig(**SHAPE), "sdm": SDDPMConfig(**SHAPE, tsm=True), "fsddim": FSDDIMConfig(**SHAPE)}


def payload(which: str = "sddpm", **changes: object) -> dict:
    """What a training writes, without the optimizer."""
    net = build_network(CONFIGS[which])
    config = {"arch": net.config.arch, "unet": net.config.to_dict(), "diffusion": net.diffusion.to_dict()}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    return {"kind": "direct", "format": 1, "ema_model": state, "config": config, "step": 3} | changes


def with_setting(which: str = "sddpm", **changes: object) -> dict:
    whole = payload(which)
    return whole | {"config": whole["config"] | {"unet": whole["config"]["unet"] | changes}}


def with_arch(arch: object, which: str = "sddpm") -> dict:
    whole = payload(which)
    return whole | {"config": whole["config"] | {"arch": arch}}


def with_entries(ending: str, change, which: str = "sddpm") -> dict:
    """`change` applied to every entry whose name ends so."""
    whole = payload(which)
    state = {name: change(value) if name.endswith(ending) else value for name, value in whole["ema_model"].items()}
    return whole | {"ema_model": state}


def disguised(which: str, kind: str) -> dict:
    return payload(which) | {"kind": kind}


def settings_of(which: str, of: str) -> dict:
    """The weights of one network, arch and settings of another."""
    return payload(which) | {"config": payload(of)["config"]}


VAST = {"ch": 4096, "ch_mult": [64] * 8, "num_res_blocks": 16, "image_size": 128, "spike_steps": 256}
#: Name → (content, a word of the refusal). None of these may load.
REFUSED = {
    "another architecture's settings": (lambda: settings_of("sddpm", "fsddim"), "entries"),
    "another architecture's name": (lambda: with_arch("fsddim"), "configuration is unreadable"),
    "its own name reversed": (lambda: with_arch("sddpm", "fsddim"), "configuration is unreadable"),
    "an unknown architecture": (lambda: with_arch(ESCAPE), "architecture"),
    "an architecture that is a number": (lambda: with_arch(3), "architecture"),
    "billions of time steps": (lambda: with_setting(spike_steps=10**9), "--timestep=1000000000"),
    "half a time step": (lambda: with_setting(spike_steps=0.5), "--timestep=0.5"),
    "no time steps": (lambda: with_setting(spike_steps=0), "--timestep=0"),
    "time steps as text": (lambda: with_setting(spike_steps="4"), "--timestep=4"),
    "unknown corrections": (lambda: with_setting(corrections=["init", ESCAPE]), "--corrections="),
    "corrections in one word": (lambda: with_setting(corrections="init"), "--corrections="),
    "corrections by number": (lambda: with_setting(corrections=7), "unreadable"),
    "no corrections at all": (lambda: with_setting(corrections=None), "unreadable"),
    "endless corrections": (lambda: with_setting(corrections=["init"] * 10**5), "each once"),
    "tsm without factors": (lambda: with_setting(tsm=True), "missing"),
    "factors without tsm": (lambda: with_setting("sdm", tsm=False), "missing"),
    "tsm by number": (lambda: with_setting("sdm", tsm=1), "--tsm=1"),
    "factors of other time steps": (lambda: with_setting("sdm", spike_steps=8), "expected [8, 1, 1, 1, 1]"),
    "no threshold": (lambda: with_setting(threshold=0), "--threshold=0"),
    "a threshold that is not a number": (lambda: with_setting(threshold=float("nan")), "--threshold=nan"),
    "a vast threshold": (lambda: with_setting(threshold=2**62), "--threshold="),
    "an unknown surrogate": (lambda: with_setting(surrogate="__import__"), "--surrogate="),
    "membranes that grow": (lambda: with_setting("fsddim", decay=1.5), "--decay=1.5"),
    "a norm that is no word": (lambda: with_setting("fsddim", norm=[1]), "--norm="),
    "a reset by number": (lambda: with_setting("fsddim", soft_reset=2), "--soft_reset=2"),
    "a setting of nobody": (lambda: with_setting(colour=1), "unreadable"),
    "a vast network": (lambda: with_setting(**VAST), "missing"),
    "a vast FSDDIM": (lambda: with_setting("fsddim", **VAST), "missing"),
    "vast images": (lambda: with_setting(image_size=2**40), f"at most {MAX_IMAGE_SIZE}"),
    "other diffusion steps": (lambda: with_setting(diffusion_steps=30), "20 in the process"),
    "variances below zero": (lambda: with_entries("bn1.running_var", lambda v: -v), "negative"),
    "a variance without end": (lambda: with_entries("running_var", lambda v: v / 0), "not finite"),
    "a mean that is no number": (lambda: with_entries("running_mean", lambda v: v / 0, "fsddim"), "not finite"),
    "a short counter": (lambda: with_entries("tracked", lambda v: v.int()), "num_batches_tracked"),
    "a counter that is true": (lambda: with_entries("tracked", lambda v: v > 0), "num_batches_tracked"),
    "counters in a row": (lambda: with_entries("tracked", lambda v: v.repeat(3)), "num_batches_tracked"),
    "whole weights": (lambda: with_entries("tail_conv.weight", lambda v: v.long()), "tail_conv.weight"),
    "a spiking network as ANN": (lambda: disguised("sddpm", "ann"), "no network of kind 'ann'"),
    "a spiking network as converted": (lambda: disguised("fsddim", "snn"), "fsddim"),
    "a U-Net as spiking network": (lambda: ann_payload(kind="direct"), "no network of kind 'direct'"),
    "a U-Net's settings": (lambda: payload() | {"config": ann_payload()["config"]}, "refusing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line_without_memory_or_time(name, tmp_path):
    path, (content, word) = tmp_path / "ckpt.pt", REFUSED[name]
    torch.save(content(), path)
    before, started = tree(tmp_path), time.monotonic()
    message = contained(lambda: checkpoint.load(path), memory=1 << 29)
    assert message is not None and str(path) in message and word in message, message
    assert time.monotonic() - started < 5 and tree(tmp_path) == before


@pytest.mark.parametrize("which", CONFIGS)
def test_a_counter_of_any_height_is_harmless(which, tmp_path):
    """It is an integer of the size that batch norm keeps, and no output depends on it."""
    path = tmp_path / "ckpt.pt"
    torch.save(payload(which), path)
    plain = checkpoint.load(path).net
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 19])
    for count in (2**63 - 1, -5):
        whole = with_entries("tracked", lambda value, count=count: torch.full_like(value, count), which)
        torch.save(whole | {"ema_model": payload_like(plain, whole["ema_model"])}, path)
        net = checkpoint.load(path).net
        with torch.no_grad():
            assert torch.equal(net(x, t), plain(x, t))
            net.train()(x, t)  # and counts on


def payload_like(net, state: dict) -> dict:
    """`net`'s weights with the counters of `state`."""
    return {name: state[name] if name.endswith("tracked") else value for name, value in net.state_dict().items()}


def test_scripts_refuse_it_with_code_2_and_write_nothing(tmp_path):
    logdir = tmp_path / "run"
    logdir.mkdir()
    for name in ("billions of time steps", "another architecture's settings", "variances below zero", "vast images"):
        torch.save(REFUSED[name][0](), logdir / "ckpt.pt")
        before = tree(tmp_path)
        for command in (
            ("evaluate.py", "--sample_only"),
            ("SNN_train.py", "--eval", "--sample_only"),
            ("SNN_ft.py", "--fine_tune", "--ft_method=tsm"),
            ("SNN_conversion.py", "--eval"),
        ):
            done = script(*command, f"--logdir={logdir}", "--num_images=1", *SAMPLING)
            assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr[-1000:]
            assert done.stderr.count("\n") == 1 and done.stderr[:-1].isprintable()
        assert tree(tmp_path) == before
