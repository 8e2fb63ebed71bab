"""float32 means float32 on a GPU, unless TF32 was asked for: what torch is told while networks are called."""

import contextlib
import json

import pytest
import torch
from torch import nn

import ann2snn
from ann2snn.config import DiffusionConfig, SampleConfig, TrainConfig
from ann2snn.distributed.precision import in_tf32, set_tf32
from ann2snn.distributed.world import ALONE
from ann2snn.metrics.fad import FadExtractor
from ann2snn.metrics.fad_encoder import AutoEncoder
from ann2snn.metrics.features import Lite0Extractor
from ann2snn.training.trainer import Computing, Trainer
from tests.gpu.networks import CONFIGS, STEPS, small
from tests.scripts import SAMPLING, check, script, train_flags


def switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@contextlib.contextmanager
def seen(net: nn.Module):
    """The switches at every forward pass of `net` and of its copies."""
    found = []

    def look(module: nn.Module, args: tuple) -> None:
        if isinstance(module, type(net)):
            found.append(switches())

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield found
    finally:
        handle.remove()


@pytest.fixture(autouse=True, params=[(False, True), (True, True), (True, False)], ids=str)
def before(request):
    """What the caller's process has set: torch's own defaults, everything, the other way round."""
    kept = switches()
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    assert switches() == request.param, "not put back"
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


@pytest.mark.parametrize("on", [False, True])
def test_sampling_and_training_use_it_only_if_asked_for(on, before):
    net = small("unet")
    with seen(net) as found:
        ann2snn.sample(net, 2, steps=2, progress=False, tf32=on)
    assert found and set(found) == {(on, on)}
    train = TrainConfig(batch_size=2, warmup=0)
    trainer = Trainer(CONFIGS["unet"], DiffusionConfig(diffusion_steps=STEPS), train, ALONE, Computing(tf32=on))
    with seen(net) as found:
        trainer.train_step(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert found == [(on, on)]
    assert trainer.config()["train"]["tf32"] is on


def test_where_equality_is_claimed_it_is_never_used(before):
    ann = small("unet 2 bits")
    snn = ann2snn.convert(ann, schedule="stream", settle_steps=1)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 7])
    for measure in (lambda: ann2snn.gap(ann, snn, x, t), lambda: ann2snn.cost(snn, x, t)):
        with seen(ann) as found:
            measure()
        assert found and set(found) == {(False, False)}


@pytest.mark.parametrize("kind", ["fad", "lite0"])
def test_features_are_never_extracted_in_it(kind, before):
    if kind == "lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    extractor = FadExtractor(AutoEncoder(1, 8, 32), "eval") if kind == "fad" else Lite0Extractor(32)
    with seen(nn.Conv2d(1, 1, 1)) as found:
        extractor(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
    assert found and set(found) == {(False, False)}


def test_settings_by_the_new_names_are_put_back(before):
    """torch refuses to tell by the old names what the new ones set differently."""
    matmul, conv = torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None)
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has the old names alone")
    set_tf32(False)
    conv.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        switches()
    with in_tf32(False):
        assert switches() == (False, False)
    assert conv.fp32_precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_results_say_so_and_folders_differ():
    from ann2snn.diffusion.process import options_that_count

    assert "tf32" not in options_that_count(SampleConfig())
    assert options_that_count(SampleConfig(tf32=True)) == {"tf32": True}


def test_scripts_turn_it_off_and_on(before, tmp_path):
    if before != (False, True):
        pytest.skip("once is enough: a new process has torch's own settings")

    def tell(*flags: str, has: bool) -> list:
        def spy() -> None:
            from ann2snn.cli import build
            from ann2snn.nets import UNet

            build.computes_tf32 = lambda device: has
            forward, path = UNet.forward, tmp_path / "seen"

            def call(self, x, t):
                with open(path, "a") as file:
                    file.write(json.dumps([self.training, *switches()]) + "\n")
                return forward(self, x, t)

            UNet.forward = call

        (tmp_path / "seen").unlink(missing_ok=True)
        logdir = tmp_path / f"run{has}{len(flags)}"
        flags = [*train_flags(logdir, 2, "--sample_step=2", "--sample_size=2", *SAMPLING), *flags]
        out = check(script("ANN_train.py", *flags, before=spy))
        assert ("note: --tf32: this device has no TF32; computing in float32" in out) == ("--tf32" in flags and not has)
        return [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]

    assert {tuple(line[1:]) for line in tell(has=True)} == {(False, False)}
    assert {tuple(line[1:]) for line in tell("--tf32", has=False)} == {(False, False)}
    asked = tell("--tf32", has=True)
    assert [True, True, True] in asked and [False, True, True] in asked
