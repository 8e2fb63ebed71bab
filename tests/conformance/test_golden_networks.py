"""The quantized U-Net and its converted network with the reference's dynamics, array by array.

Files: unet_{full,tiny}_state_part*, unet_*_bit2, snn_*_bit2, snn_*_bit2_spikes.
Tolerances (relative L2 of a whole tensor): 1e-5 in float32, 1e-12 in float64, spike trains exactly.
"""

import pytest
import torch

from ann2snn.convert import convert
from ann2snn.convert.gap import record_outputs
from tests.helpers import assert_close, assert_equal, golden, golden_ann, golden_state, spike_trains

FLOAT32, FLOAT64 = 1e-5, 1e-12
NETWORKS = [("tiny", 8), ("tiny", 16), ("full", 8), ("full", 32)]
REFERENCE = {"schedule": "stream", "stream_norm": "per_step", "if_neuron": "reference"}
SIGNS = {"signed": True, "unsigned": False}
# golden name of a spiking wrapper → the neuron inside
NEURON = {
    "time_embedding.timembedding": "time_embedding.timembedding.2",
    "downblocks.0.block1": "downblocks.0.block1.1",
    "downblocks.0.temb_proj": "downblocks.0.temb_proj.0",
    "downblocks.0.block2": "downblocks.0.block2.1",
    "tail": "tail.1",
}

networks = pytest.mark.parametrize(("shape", "size"), NETWORKS)
signs = pytest.mark.parametrize("sign", SIGNS)


def arrays(kind: str, shape: str, size: int, suffix: str = ""):
    return golden(f"{kind}_{shape}_{size}px_bit2{suffix}")


def reference_snn(shape: str, size: int, sign: str, dtype: torch.dtype = torch.float32):
    return convert(golden_ann(shape, size, dtype=dtype), **REFERENCE, signed=SIGNS[sign])


@pytest.mark.parametrize("shape", ["full", "tiny"])
def test_state_dict_has_the_references_names_and_time_table(shape):
    state = golden_state(shape)
    ours = golden_ann(shape, 32).state_dict()
    assert ours.keys() == state.keys() and len(ours) == {"full": 337, "tiny": 131}[shape]
    table = "time_embedding.timembedding.0.weight"
    fresh = golden_ann(shape, 32).time_embedding.timembedding[0].features(torch.arange(1000))
    torch.testing.assert_close(fresh, state[table], rtol=0, atol=1e-7)


@networks
def test_ann_output_and_blocks(shape, size):
    z = arrays("unet", shape, size)
    net = golden_ann(shape, size)
    with torch.no_grad(), record_outputs(net) as outputs:
        assert_close(net(z["x"], z["t"]), z["ann/out"], FLOAT32)
    names = [name for name in z.under("ann/") if not name.startswith("out")]
    assert len(names) == 5
    for name in names:
        assert_close(outputs[name][0], z[f"ann/{name}"], FLOAT32)


@networks
def test_ann_in_float64(shape, size):
    z = arrays("unet", shape, size)
    with torch.no_grad():
        out = golden_ann(shape, size, dtype=torch.float64)(z["x"].double(), z["t"])
    assert_close(out, z["ann/out_f64"], FLOAT64)


@networks
def test_ann_in_channels_last_and_image_by_image(shape, size):
    z = arrays("unet", shape, size)
    assert z["pair_stable"]
    net = golden_ann(shape, size)
    with torch.no_grad():
        alone = torch.cat([net(z["x"][i : i + 1], z["t"][i : i + 1]) for i in range(2)])
        assert_close(alone, z["ann/out"], FLOAT32)
        net = net.to(memory_format=torch.channels_last)
        assert_close(net(z["x"], z["t"]), z["ann/out"], FLOAT32)


@networks
@signs
def test_snn_output_and_block_means(shape, size, sign):
    z = arrays("snn", shape, size)
    assert z["pair_stable"]
    snn = reference_snn(shape, size, sign)
    with torch.no_grad(), record_outputs(snn) as outputs:
        assert_close(snn(z["x"], z["t"]), z[f"snn/{sign}/out"], FLOAT32)
    names = [name for name in z.under(f"snn/{sign}/") if name.endswith("/mean")]
    assert len(names) == 5
    for name in names:
        assert_close(outputs[name.removesuffix("/mean")][0], z[f"snn/{sign}/{name}"], FLOAT32)


@networks
@signs
def test_snn_in_float64(shape, size, sign):
    z = arrays("snn", shape, size)
    with torch.no_grad():
        out = reference_snn(shape, size, sign, torch.float64)(z["x"].double(), z["t"])
    assert_close(out, z[f"snn/{sign}/out_f64"], FLOAT64)


@networks
@signs
def test_snn_spike_trains(shape, size, sign):
    z, spikes = arrays("snn", shape, size), arrays("snn", shape, size, "_spikes")
    _, trains = spike_trains(reference_snn(shape, size, sign), z["x"], z["t"])
    wrappers = [name.removesuffix("/spikes") for name in spikes.under(f"snn/{sign}/")]
    assert len(wrappers) >= 4
    for wrapper in wrappers:
        expected = spikes[f"snn/{sign}/{wrapper}/spikes"].transpose(0, 1)  # [N, T, …] → [T, N, …]
        assert_equal(trains[NEURON[wrapper]].to(torch.int8), expected)


class SignedClock:
    """The network's clock, as seen by a neuron that is signed whatever the others are."""

    def __init__(self, clock, config) -> None:
        self.clock, self.config = clock, config

    def __getattr__(self, name):
        return getattr(self.clock, name)


@networks
def test_snn_with_signed_time_embedding_and_tail_only(shape, size):
    # The reference's unsigned_spikes() forgets the neurons of the time embedding and of the tail.
    z = arrays("snn", shape, size)
    snn, signed = reference_snn(shape, size, "unsigned"), reference_snn(shape, size, "signed").spiking
    for name, neuron in snn.neurons():
        if name.startswith(("time_embedding", "tail")):
            neuron.clock = SignedClock(snn.clock, signed)
    with torch.no_grad():
        assert_close(snn(z["x"], z["t"]), z["snn/unsigned_fn/out"], FLOAT32)


@networks
def test_ann_and_snn_files_share_their_searched_inputs(shape, size):
    unet, snn = arrays("unet", shape, size), arrays("snn", shape, size)
    for name in ("x", "t", "seeds", "margin"):
        assert_equal(unet[name], snn[name])
    assert unet["margin"].min() > 5e-7  # what makes a float32 comparison of a discontinuous network possible
