"""SNN_conversion.py --export_program, --export_onnx: files beside everything else, or one line and nothing."""

import importlib.util

import pytest
import torch

import ann2snn
from tests.helpers import assert_equal
from tests.scripts import SAMPLING, check, script
from tests.stages.test_bad_input import refused

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))


@pytest.fixture
def flags(finished_run, tmp_path):
    logdir, _ = finished_run
    return ["--eval", f"--eval_model_path={logdir}/ckpt.pt", f"--logdir={tmp_path}/run", *SAMPLING, "--gen_images=0"]


def test_the_program_is_the_networks(flags, tmp_path):
    path = tmp_path / "net.pt2"
    said = check(script("SNN_conversion.py", *flags, "--gap_images=0", f"--export_program={path}"))
    assert f"{path}: one pass of the network" in said
    snn = ann2snn.load(tmp_path / "run" / "converted_snn.pt")
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([3.0, 40.0, 0.5])
    assert_equal(torch.export.load(path).module()(x, t), snn(x, t).detach())
    before = path.read_bytes()
    refused(script("SNN_conversion.py", *flags, f"--export_program={path}"), "nothing is overwritten")
    assert path.read_bytes() == before


def test_several_passes_are_refused_before_anything_is_written(flags, tmp_path):
    done = script("SNN_conversion.py", *flags, "--schedule=stream", f"--export_program={tmp_path}/net.pt2")
    refused(done, "--schedule=layer_sync")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(HAS_ONNX, reason="onnx and onnxscript are installed")
def test_without_onnx_the_packages_are_named(flags, tmp_path):
    refused(script("SNN_conversion.py", *flags, f"--export_onnx={tmp_path}/net.onnx"), "pip install onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not HAS_ONNX, reason="onnx and onnxscript are not installed: pip install onnx onnxscript")
@pytest.mark.slow
def test_the_onnx_file_is_written(flags, tmp_path):
    check(script("SNN_conversion.py", *flags, "--gap_images=0", f"--export_onnx={tmp_path}/net.onnx"))
    onnx = pytest.importorskip("onnx")
    assert {value.name for value in onnx.load(tmp_path / "net.onnx").graph.input} == {"x", "t"}
