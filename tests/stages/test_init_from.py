"""ANN_train.py --init_from: another network is quantized on its own sampling path, and then trained."""

import pytest
import torch

import ann2snn
from ann2snn.generate.probe import sampler_states
from ann2snn.nets.attention_unet import AttentionUNet
from ann2snn.nets.diffusers_unet import DiffusersUNet
from quant import calibrate_activations
from tests.foreign_files import PytorchDDPM, diffusers_folder
from tests.helpers import assert_equal
from tests.scripts import FEWER_CLIPS, NETWORK, SAMPLING, check, script, train_flags
from tests.stages.test_bad_input import refused

DATA = ["--dataset_type=fashion_mnist_10k", "--num_threads=1", "--device=cpu"]
GREY = {"in_channels": 1, "out_channels": 1}


@pytest.fixture(scope="module")
def floating(tmp_path_factory):
    """A run of a full-precision U-Net."""
    logdir = tmp_path_factory.mktemp("floating") / "run"
    check(script("ANN_train.py", *train_flags(logdir, 4, "--bit=32")))
    return logdir / "ckpt.pt"


def begin(logdir, source, steps, *extra):
    flags = ["--train", f"--logdir={logdir}", f"--init_from={source}", f"--total_steps={steps}", *DATA]
    flags += ["--warmup=0", "--batch_size=8", "--log_step=1", "--save_step=4", "--sample_step=0", "--lr=1e-4"]
    return script("ANN_train.py", *flags, *extra)


def test_without_steps_it_is_the_network_calibrated_on_sampler_states(floating, tmp_path, monkeypatch):
    said = check(begin(tmp_path / "run", floating, 0, "--bit=3", "--seed=5"))
    assert "3 bits, calibrated, not trained" in said and "--bit=3" in (tmp_path / "run" / "flagfile.txt").read_text()
    net, source = ann2snn.load(tmp_path / "run" / "ckpt.pt"), ann2snn.load(floating)
    assert net.config.bits == 3 and source.config.bits == 32 and net.diffusion == source.diffusion
    expected = ann2snn.load(tmp_path / "run" / "ckpt.pt", weights="net")
    for name, value in expected.named_parameters():
        if name.endswith("act_alpha"):
            value.data.fill_(1.0)
        else:
            assert_equal(value.data, source.state_dict()[name])
    x, t = sampler_states(source, 8, 8, 5)
    for fewer in FEWER_CLIPS:
        monkeypatch.setattr(*fewer)
    calibrate_activations(expected, zip(x.split(16), t.split(16), strict=True))
    for name, value in expected.state_dict().items():
        assert_equal(net.state_dict()[name], value)


def test_the_same_command_with_steps_trains_on_and_converts(floating, tmp_path):
    check(begin(tmp_path / "run", floating, 0, "--bit=2"))
    assert "resuming" in check(begin(tmp_path / "run", floating, 2, "--bit=2"))
    check(begin(tmp_path / "whole", floating, 2, "--bit=2"))
    a, b = (ann2snn.load(tmp_path / run / "ckpt.pt") for run in ("run", "whole"))
    for name, value in a.state_dict().items():
        assert_equal(b.state_dict()[name], value)
    assert not torch.equal(a.tail[2].weight, ann2snn.load(floating).tail[2].weight)
    refused(begin(tmp_path / "run", tmp_path / "whole" / "ckpt.pt", 3), "cannot resume", "other weights than those of")
    # Classes that are new to it change nothing at first.
    check(begin(tmp_path / "classes", tmp_path / "run" / "ckpt.pt", 0, "--class_cond"))
    knowing, (x, t) = ann2snn.load(tmp_path / "classes" / "ckpt.pt"), sampler_states(a, 2, 2, 0)
    assert knowing.class_names[9] == "Ankle boot" and not knowing.class_embedding.weight.any()
    with torch.no_grad():
        assert_equal(knowing(x, t, torch.tensor([0, 9, 10, 3])), a(x, t))
    # What is quantized already keeps its quantizers.
    check(begin(tmp_path / "next", tmp_path / "run" / "ckpt.pt", 0))
    for name, value in ann2snn.load(tmp_path / "next" / "ckpt.pt").state_dict().items():
        assert_equal(a.state_dict()[name], value)
    assert ann2snn.load(tmp_path / "next" / "ckpt.pt").config.bits == 2


@pytest.mark.parametrize(
    ("options", "kind"),
    [({}, AttentionUNet), pytest.param({"attention_head_dim": 4}, DiffusersUNet, marks=pytest.mark.slow)],
)
def test_a_network_of_diffusers_becomes_a_spiking_one(tmp_path, options, kind):
    diffusers_folder(tmp_path / "theirs", **GREY, **options)
    check(begin(tmp_path / "run", tmp_path / "theirs", 1, "--bit=2"))
    net = ann2snn.load(tmp_path / "run" / "ckpt.pt")
    assert isinstance(net, kind) and net.config.bits == 2
    again = check(script("ANN_train.py", f"--flagfile={tmp_path}/run/flagfile.txt"))
    assert "nothing left to train" in again
    flags = ["--eval", f"--logdir={tmp_path}/run", "--gap_images=1", "--gen_images=0", "--num_threads=1", *SAMPLING]
    assert "layer_sync" in check(script("SNN_conversion.py", *flags))
    snn = ann2snn.load(tmp_path / "run" / "converted_snn.pt")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        assert_equal(snn(x, t), net(x, t))


def test_what_does_not_fit_is_refused(floating, tmp_path, finished_run):
    run = tmp_path / "run"
    refused(begin(run, floating, 0, "--bit=2", "--arch=attention"), "--arch=attention contradicts", "made with unet")
    refused(begin(run, floating, 0, "--bit=2", "--ch=16"), "--ch=16 contradicts", "made with 8")
    refused(begin(run, "nowhere.pt", 0, "--bit=2"), "no checkpoint at nowhere.pt")
    logdir, _ = finished_run
    refused(begin(run, logdir / "converted_snn.pt", 0), "is a spiking network")
    refused(begin(run, logdir / "ckpt.pt", 0, "--bit=32"), "--bit=32 contradicts", "of 2 bits")
    refused(script("SNN_train.py", *train_flags(run, 2, "--arch=sddpm", f"--init_from={floating}")), "--init_from")
    refused(script("ANN_train.py", "--train", f"--logdir={run}", *NETWORK, "--total_steps=0"), "--total_steps=0")
    theirs = PytorchDDPM()
    theirs.write(tmp_path / "colour.pt")
    done = begin(run, tmp_path / "colour.pt", 0, "--bit=4", "--norm_groups=2")
    assert done.returncode == 2 and "has 1 image channels" in done.stderr
    assert not (run / "ckpt.pt").exists()
