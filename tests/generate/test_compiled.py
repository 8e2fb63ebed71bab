"""A compiled network is the network: its results, its weights as they change, its errors."""

import functools
import shutil
import signal
from collections.abc import Callable

import pytest
import torch

from ann2snn.config import SpikingConfig
from ann2snn.convert import convert
from ann2snn.generate import compiled
from ann2snn.generate.compiled import Compiled, unsuitable
from ann2snn.nets.fsddim import FSDDIM, FSDDIMConfig
from ann2snn.nets.sddpm import SDDPM, SDDPMConfig
from tests.helpers import assert_close, assert_equal, random_ann, random_batch
from tests.processes import ended, fork

DIRECT = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "image_size": 4, "diffusion_steps": 20}
NETWORKS = {
    "full precision": lambda: random_ann(bits=32),
    "quantized": random_ann,
    "layer_sync": lambda: convert(random_ann()),
    "stream": lambda: convert(random_ann(), schedule="stream"),
    "settled": lambda: convert(random_ann(), schedule="stream", settle_steps=2),
    "sddpm": lambda: SDDPM(SDDPMConfig(**DIRECT)).double().eval(),
    "fsddim": lambda: FSDDIM(FSDDIMConfig(**DIRECT)).double().eval(),
}
#: Rounding in float64; a spike at another place would be 1e-2 and more.
CLOSE = 1e-10
compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def in_child(test: Callable) -> Callable:
    """Run a test in a forked process: what the compiler starts must not be there when later tests fork."""

    @functools.wraps(test)
    def run(*args, **kwargs) -> None:
        def work() -> None:
            signal.alarm(900)
            test(*args, **kwargs)

        assert ended(fork(work)) == 0

    return run


def said_nothing() -> bool:
    return compiled._note.cache_info().currsize == 0


def check_forward(name: str, backend: str, tolerance: float) -> None:
    net = NETWORKS[name]()
    fast, batch = Compiled(net, backend), random_batch(net, 3)
    with torch.no_grad():
        assert_close(fast(*batch), net(*batch), tolerance)
        for parameter in net.parameters():
            parameter.mul_(1.01)  # as an optimizer does
        assert_close(fast(*batch), net(*batch), tolerance)
    assert said_nothing()


@pytest.mark.parametrize(
    "name", ["full precision", *(pytest.param(name, marks=pytest.mark.slow) for name in ("quantized", "layer_sync"))]
)
@in_child
def test_traced_in_one_piece_it_computes_the_same(name):
    check_forward(name, "eager", 0.0)


@pytest.mark.slow
@compiler
@pytest.mark.parametrize("name", NETWORKS)
@in_child
def test_compiled_it_computes_the_same(name):
    check_forward(name, "inductor", CLOSE)


@pytest.mark.slow
@compiler
@pytest.mark.parametrize("name", ["quantized", "sddpm"])
@in_child
def test_compiled_gradients_and_dropout_masks_are_the_same(name):
    net = random_ann(dropout=0.3) if name == "quantized" else NETWORKS[name]()
    net.train()
    batch, found = random_batch(net, 3), []
    for call in (net, Compiled(net)):
        torch.manual_seed(0)
        out = call(*batch)
        learned = [p for p in net.parameters() if p.requires_grad]
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), learned)))
    scale = max(float(value.norm()) for value in found[0])
    for fast, plain in zip(found[1], found[0], strict=True):
        assert float((fast - plain).norm()) < CLOSE * scale
    assert said_nothing()


@compiler
@in_child
def test_a_small_network_goes_through_the_compiler():
    """The slow tests above take minutes."""

    class Small(torch.nn.Linear):
        def forward(self, x, t):
            return torch.nn.functional.dropout(torch.relu(super().forward(x)) + t[:, None])

    net, found = Small(4, 4).double(), []
    for call in (net, Compiled(net)):
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(call(torch.ones(3, 4, dtype=torch.float64), torch.arange(3)))
    assert_close(found[1], found[0], 1e-14)
    assert said_nothing()


@in_child
def test_it_is_the_network_itself_unless_asked_for():
    net = random_ann()
    assert compiled.compiled(net) is net
    compiled.enable(True)
    fast = compiled.compiled(net)
    assert fast is compiled.compiled(net) is not net
    assert {id(p) for p in fast.parameters()} == {id(p) for p in net.parameters()}
    assert not any("orig_mod" in name or name.startswith("net.") for name in net.state_dict())


@in_child
def test_a_compiler_that_fails_is_mentioned_once_and_left_alone(capsys):
    calls = []

    def failing(graph, inputs):
        calls.append(graph)
        raise RuntimeError("no C++ compiler\nfound")

    for net in (random_ann(bits=32), random_ann(bits=32, seed=1)):
        fast, batch = Compiled(net, failing), random_batch(net)
        with torch.no_grad():
            for _ in range(2):
                assert_equal(fast(*batch), net(*batch))
    assert len(calls) == 2, "not tried again"
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "no C++ compiler found" in out


@pytest.mark.slow
@in_child
def test_the_networks_own_errors_stay_what_they_are():
    net = FSDDIM(FSDDIMConfig(**DIRECT | {"ch_mult": (1,)})).double().eval()
    fast = Compiled(net, "eager")
    with pytest.raises(ValueError, match="3 rows for 2 times"):
        fast(torch.zeros(3, 3, 4, 4, dtype=torch.float64), torch.zeros(2))
    assert said_nothing()
    with torch.no_grad():
        batch = random_batch(net)
        assert_equal(fast(*batch), net(*batch))


@in_child
def test_long_and_open_ended_windows_run_as_they_are(capsys):
    auto = convert(random_ann(), schedule="stream", settle_steps="auto")
    long, short = (convert(random_ann(bits=bits), schedule="stream") for bits in (4, 3))
    assert "settles" in unsuitable(auto) and "15 time steps" in unsuitable(long)
    assert not unsuitable(short) and not unsuitable(random_ann())
    with long.running_as(SpikingConfig()):
        assert not unsuitable(long)
    batch = random_batch(auto)
    with torch.no_grad():
        assert_equal(Compiled(auto)(*batch), auto(*batch))
    assert "note: --compile: SpikingNetwork runs uncompiled" in capsys.readouterr().out
