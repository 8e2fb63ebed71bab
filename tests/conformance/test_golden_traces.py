"""Each block alone, on the reference's recorded inputs: trace_{ann,snn_signed,snn_unsigned}_full_8px_bit2.

Tolerance: relative L2 1e-5 in float32, per block, every time step included.
"""

from collections.abc import Iterator

import pytest
import torch

from ann2snn.convert import convert
from ann2snn.nets.parts import ResBlock
from tests.helpers import assert_close, assert_equal, golden, golden_ann

TOLERANCE = 1e-5
T = 3


def block_inputs(net, trace: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.nn.Module, tuple]]:
    """(name, block, its recorded arguments) for all blocks behind the inputs, in data-flow order."""
    temb, h = trace["time_embedding"], trace["head"]
    skips = [h]
    for name, block in net.blocks():
        if name in ("head", "time_embedding"):
            continue
        if name.startswith("upblocks") and isinstance(block, ResBlock):
            h = torch.cat([h, skips.pop()], dim=1)
        yield name, block, (h,) if name == "tail" else (h, temb)
        h = trace[name]
        if name.startswith("downblocks"):
            skips.append(h)


def test_every_ann_block_alone():
    z, net = golden("trace_ann_full_8px_bit2"), golden_ann("full", 8)
    trace = {name: z[name] for name, _ in net.blocks()}
    with torch.no_grad():
        assert_close(net.head(z["x"]), trace["head"], TOLERANCE)
        assert_close(net.time_embedding(z["t"]), trace["time_embedding"], TOLERANCE)
        checked = 0
        for name, block, args in block_inputs(net, trace):
            assert_close(block(*args), trace[name], TOLERANCE)
            checked += 1
    assert checked == len(trace) - 2 == 29


@pytest.mark.parametrize("sign", ["signed", "unsigned"])
def test_every_snn_block_alone(sign):
    z = golden(f"trace_snn_{sign}_full_8px_bit2")
    snn = convert(
        golden_ann("full", 8),
        schedule="stream",
        stream_norm="per_step",
        if_neuron="reference",
        signed=sign == "signed",
    )
    trace = {name: z[name] for name, _ in snn.blocks()}
    # golden [N, T, …] → ours [T·N, …]; the head's output is the same at every step and stored once
    folded = {
        name: value.repeat(T, 1, 1, 1) if name == "head" else value.transpose(0, 1).flatten(0, 1)
        for name, value in trace.items()
        if name != "tail"
    }
    snn.clock.chunk_steps, snn.clock.input_on = T, True
    with torch.no_grad():
        snn.reset()
        assert_close(snn.net.head(z["x"].repeat(T, 1, 1, 1)), folded["head"], TOLERANCE)
        assert_close(snn.net.time_embedding(z["t"].repeat(T)), folded["time_embedding"], TOLERANCE)
        for name, block, args in block_inputs(snn.net, folded | {"tail": trace["tail"]}):
            snn.reset()
            out = block(*args)
            out = snn.clock.unfold(out).mean(0) if name == "tail" else out
            assert_close(out, trace["tail"] if name == "tail" else folded[name], TOLERANCE)


def test_traces_and_networks_were_recorded_on_the_same_inputs():
    network = golden("unet_full_8px_bit2")
    for tag in ("ann", "snn_signed", "snn_unsigned"):
        assert_equal(golden(f"trace_{tag}_full_8px_bit2")["x"], network["x"])
        assert_equal(golden(f"trace_{tag}_full_8px_bit2")["t"], network["t"])
