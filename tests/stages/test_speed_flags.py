"""--spike_chunk, --resident, --compile and --amp change how a run computes, not what it computes."""

import pytest
import torch

from ann2snn.cli import build
from ann2snn.distributed.runtime import computes_bfloat16
from ann2snn.generate import compiled
from tests.scripts import SAMPLING, check, script, train_flags
from tests.stages.test_bad_input import refused
from tests.stages.test_parallel import distance, images, state
from tests.stages.test_resume import assert_same_run


def eager_backend():
    """Traces the network as a run with a compiler does, and leaves out the minutes that the compiler takes."""
    original = compiled.Compiled.__init__
    compiled.Compiled.__init__ = lambda self, net: original(self, net, backend="eager")


def no_compiler():
    """A backend that fails when the network is called for the first time."""

    def fail(graph, inputs):
        raise RuntimeError("no C++ compiler\nfound anywhere")

    original = compiled.Compiled.__init__
    compiled.Compiled.__init__ = lambda self, net: original(self, net, backend=fail)


SAMPLED = ["--sample_step=4", "--sample_size=3", *SAMPLING]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("plain")
    check(script("ANN_train.py", *train_flags(logdir, 4, *SAMPLED)))
    return logdir


def test_resident_images_train_the_same_network(plain, tmp_path):
    check(script("ANN_train.py", *train_flags(tmp_path, 4, "--resident=on", *SAMPLED)))
    assert_same_run(tmp_path, plain)


def test_a_compiled_training_is_the_plain_one_and_continues_it(plain, tmp_path):
    """Traced, not compiled: to the last digits, and with the same keys."""
    assert "resuming" not in check(script("ANN_train.py", *train_flags(tmp_path, 2, *SAMPLED)))
    out = check(script("ANN_train.py", *train_flags(tmp_path, 4, "--compile", *SAMPLED), before=eager_backend))
    assert "resuming" in out and "note" not in out
    for key in ("net_model", "ema_model"):
        assert state(tmp_path / "ckpt.pt", key).keys() == state(plain / "ckpt.pt", key).keys()
        assert distance(state(tmp_path / "ckpt.pt", key), state(plain / "ckpt.pt", key)) < 1e-6
    assert (tmp_path / "sample" / "4.png").exists()


@pytest.mark.slow
def test_without_a_compiler_a_run_says_so_once_and_goes_on(plain, tmp_path):
    out = check(script("ANN_train.py", *train_flags(tmp_path, 4, "--compile", *SAMPLED), before=no_compiler))
    notes = [line for line in out.splitlines() if "--compile" in line]
    assert len(notes) == 1 and notes[0].startswith("note: ") and "no C++ compiler" in notes[0]
    assert_same_run(tmp_path, plain)


def low_precision(available: bool):
    def before() -> None:
        build.computes_bfloat16 = lambda device: available

    return before


def test_bfloat16_trains_nearly_the_same_network(plain, tmp_path):
    out = check(script("ANN_train.py", *train_flags(tmp_path, 4, "--amp", *SAMPLED), before=low_precision(True)))
    assert "note" not in out
    weights, wanted = (state(folder / "ckpt.pt", "net_model") for folder in (tmp_path, plain))
    assert all(weight.dtype == wanted[name].dtype for name, weight in weights.items())
    assert 0 < distance(weights, wanted) < 1e-2


def test_images_of_bfloat16_calls_are_others_and_say_so(tmp_path):
    check(script("ANN_train.py", *train_flags(tmp_path, 40, "--save_step=0")))  # answers large enough to be seen
    flags = [f"--logdir={tmp_path}", "--sample_only", "--num_images=4", *SAMPLING]
    check(script("evaluate.py", *flags, f"--images_dir={tmp_path}/plain"))
    check(script("evaluate.py", *flags, f"--images_dir={tmp_path}/low", "--amp", before=low_precision(True)))
    low, usual = (images(tmp_path / name) for name in ("low", "plain"))
    assert len(low) == 4 and low.keys() == usual.keys() and low != usual
    refused(script("evaluate.py", *flags, f"--images_dir={tmp_path}/low"), "amp")


def test_a_cpu_computes_bfloat16_if_torch_says_so(monkeypatch):
    names = "_is_avx512_bf16_supported", "_is_amx_tile_supported"
    for name in names:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not computes_bfloat16(torch.device("cpu"))
    for name in names:
        with monkeypatch.context() as patch:
            patch.setattr(torch.cpu, name, lambda: True, raising=False)
            assert computes_bfloat16(torch.device("cpu"))


def test_without_bfloat16_a_run_says_so_and_trains_in_float32(plain, tmp_path):
    out = check(script("ANN_train.py", *train_flags(tmp_path, 4, "--amp", *SAMPLED), before=low_precision(False)))
    assert "note: --amp: no bfloat16 arithmetic on this device; computing in float32" in out.splitlines()
    assert_same_run(tmp_path, plain)


def test_a_network_in_chunks_makes_the_same_images(plain, tmp_path):
    """In float32 a sum's order may move a threshold; these images have none so close. Of tables: test_spike_chunk."""
    (tmp_path / "ckpt.pt").write_bytes((plain / "ckpt.pt").read_bytes())
    flags = [f"--logdir={tmp_path}", "--schedule=stream", *SAMPLING]
    conversion = ["--eval", *flags, "--spike_chunk=2", "--gen_images=0", "--gap_images=0"]
    check(script("SNN_conversion.py", *conversion))
    files = {}
    for chunk in (0, 2):
        folder = tmp_path / f"images{chunk}"
        made = ["--sample_only", *flags, f"--spike_chunk={chunk}", "--num_images=4", f"--images_dir={folder}"]
        check(script("evaluate.py", *made))
        files[chunk] = images(folder)
    assert len(files[0]) == 4 and files[0] == files[2]


@pytest.mark.parametrize("flag", ["--spike_chunk=-1", "--spike_chunk=256", "--resident=maybe"])
def test_bad_values_are_refused(flag, tmp_path):
    refused(script("evaluate.py", "--sample_only", f"--logdir={tmp_path}", flag), flag.split("=")[0].strip("-"))
