"""A network as an ONNX file: ONNX Runtime finds the same levels, halves included."""

from collections import Counter

import numpy as np
import pytest
import torch

import ann2snn
from ann2snn.exchange.qdq import whole_numbers
from ann2snn.quant import QuantConv2d, UniformQuantizer
from tests.exchange.networks import Bank, exact_network, halves, plain_answer, unet

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxruntime onnxscript")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")


def ran(path, *inputs: torch.Tensor) -> list[torch.Tensor]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return [torch.from_numpy(y) for y in session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})]


def test_every_quantizer_keeps_its_levels_where_they_change(tmp_path):
    bank, x = Bank(), halves()
    ann2snn.export_onnx(bank, tmp_path / "bank.onnx", x)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "bank.onnx").graph.node)
    assert kinds["QuantizeLinear"] == kinds["DequantizeLinear"] == len(bank.kinds)
    for kind, got, expected in zip(bank.kinds, ran(tmp_path / "bank.onnx", x), bank(x), strict=True):
        if type(kind).__name__ == "QuantSwish":  # the runtimes' sigmoids differ by a rounding, and so its levels may
            assert (got != expected).float().mean() < 1e-3
        else:
            assert torch.equal(got, expected.detach()), kind


def test_a_network_whose_sums_are_exact_is_equal_to_the_bit_and_has_whole_weights(tmp_path):
    net = exact_network()
    for name, written in (("ann", net), ("snn", ann2snn.convert(net))):
        ann2snn.export_onnx(written, tmp_path / name, torch.zeros(1, 2, 4, 4))
        for rows in (1, 5):
            x = torch.randint(-8, 9, (rows, 2, 4, 4)) / 8
            assert torch.equal(ran(tmp_path / name, x)[0], plain_answer(net, x))
    graph = onnx.load(tmp_path / "snn").graph
    numbers = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    nodes = {kind: [node for node in graph.node if node.op_type == kind] for kind in ("QuantizeLinear", "Conv")}
    pairs = [(n, m) for n in nodes["QuantizeLinear"] for m in graph.node if n.output[0] in m.input]
    assert len(pairs) == 3 and all(m.op_type == "DequantizeLinear" and m.input[1:] == n.input[1:] for n, m in pairs)
    assert [numbers[n.input[2]].dtype for n, _ in pairs] == [np.uint8, np.int8, np.uint8]
    weights = [next(n for n in graph.node if n.output[0] == conv.input[1]) for conv in nodes["Conv"]]
    assert all(n.op_type == "DequantizeLinear" and numbers[n.input[0]].dtype == np.int8 for n in weights)


@pytest.mark.slow
def test_the_unet_differs_by_rounding_alone_and_says_its_process(tmp_path):
    net = unet(bit=4, ch_mult=(1,), image_size=4)
    ann2snn.export_onnx(net, tmp_path / "net.onnx")
    x, t = torch.randn(3, 3, 4, 4), torch.tensor([0.0, 3.5, 999.0])
    expected = plain_answer(net, x, t)
    assert float((ran(tmp_path / "net.onnx", x, t)[0] - expected).norm() / expected.norm()) < 0.05
    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert about["written_by"] == "ann2snn" and '"diffusion_steps": 1000' in about["diffusion"]


@pytest.mark.slow
def test_images_that_are_no_squares(tmp_path):
    net = unet(bit=4, ch_mult=(1, 2), image_size=(4, 6))
    ann2snn.export_onnx(net, tmp_path / "net.onnx")
    x, t = torch.randn(2, 3, 4, 6), torch.tensor([3.0, 700.0])
    expected = plain_answer(net, x, t)
    [answer] = ran(tmp_path / "net.onnx", x, t)
    assert answer.shape == expected.shape and float((answer - expected).norm() / expected.norm()) < 0.05
    fixed = onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape.dim[2:]
    assert [side.dim_value for side in fixed] == [4, 6]


def test_levels_beyond_eight_bits_and_other_precisions_are_refused(tmp_path):
    fake = torch.ao.quantization.FakeQuantize(quant_min=0, quant_max=1023, dtype=torch.qint32)
    fake.disable_observer()
    for net, x, said in (
        (fake.eval(), torch.zeros(2, 3), "8 bits"),
        (UniformQuantizer(4).double().eval(), torch.zeros(2, 3).double(), r"\.float\(\)"),
    ):
        with pytest.raises(ann2snn.UserError, match=said):
            ann2snn.export_onnx(net, tmp_path / "net.onnx", x)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("bits", "power"), [(2, False), (2, True), (8, False), (4, True)])
def test_weights_are_whole_numbers_only_where_that_is_exact(bits, power):
    torch.manual_seed(0)
    weight = QuantConv2d(8, 8, 3, bits=bits, power=power, keep_scale=True).quantized_weight().detach()
    found = whole_numbers(weight)
    assert found is not None or bits > 2
    if found is not None:
        levels, scale = found
        assert levels.dtype == torch.int8 and torch.equal(levels * scale, weight)
    assert whole_numbers(torch.randn(1000)) is None
