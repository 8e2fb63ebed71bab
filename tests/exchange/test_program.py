"""A network as a torch.export program answers the same bits, the quantized one and its neurons by one graph."""

import re
import sys

import pytest
import torch

import ann2snn
from ann2snn.exchange import check_exported
from tests.exchange.networks import Bank, exact_network, halves, plain_answer, unet
from tests.helpers import assert_equal
from tests.processes import ended, fork


def written(path, net, *example, **named):
    ann2snn.export_program(net, path, *example, **named)
    return torch.export.load(path)


def code(program) -> str:
    return program.graph_module.code


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The small U-Net, its call, and the files of it and of its converted network."""
    folder, net = tmp_path_factory.mktemp("programs"), unet()
    ann2snn.export_program(net, folder / "ann.pt2")
    ann2snn.export_program(ann2snn.convert(net), folder / "snn.pt2")
    return net, (torch.randn(3, 3, 8, 8), torch.tensor([0.0, 3.5, 999.0])), folder


@pytest.mark.parametrize("rows", [1, 3])
def test_the_unet_answers_the_same_bits_for_any_batch(files, rows):
    net, call, folder = files
    call = tuple(value[:rows] for value in call)
    assert_equal(torch.export.load(folder / "ann.pt2").module()(*call), plain_answer(net, *call))


def test_one_pass_of_the_neurons_is_the_quantized_networks_graph(files):
    """Operation for operation, and number for number."""
    ann, snn = (torch.export.load(files[2] / f"{name}.pt2") for name in ("ann", "snn"))
    assert code(ann) == code(snn)
    assert ann.state_dict.keys() == snn.state_dict.keys()
    assert all(torch.equal(ann.state_dict[name], snn.state_dict[name]) for name in ann.state_dict)


def test_the_file_needs_nothing_of_this_program(files):
    net, (x, t), folder = files
    torch.save((x, t), folder / "call.pt")

    def load_and_run() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] in ("ann2snn", "quant")]:
            sys.modules[name] = None  # cannot be imported
        program = torch.export.load(folder / "snn.pt2").module()
        torch.save(program(*torch.load(folder / "call.pt")), folder / "answer.pt")

    assert ended(fork(load_and_run)) == 0
    assert_equal(torch.load(folder / "answer.pt"), plain_answer(net, x, t))


def test_every_quantizer_keeps_its_levels_where_they_change(tmp_path):
    bank, x = Bank(), halves()
    program = written(tmp_path / "bank.pt2", bank, x).module()
    for got, expected in zip(program(x), bank(x), strict=True):
        assert_equal(got, expected.detach())


def test_learned_potentials_folded_thresholds_and_double_precision_are_written(tmp_path):
    snn = ann2snn.convert(exact_network().double())
    x = torch.randint(-8, 9, (3, 2, 4, 4)).double() / 8
    for _, neuron in snn.neurons():
        neuron.expand((), thresholds=False, charges=True)
        neuron.charge.data.fill_(0.8)
    with torch.no_grad():
        expected, half = snn(x), exact_network().double()(x)
    assert not torch.equal(expected, half)
    assert_equal(written(tmp_path / "charged.pt2", snn, x).module()(x), expected)


def test_attributes_of_other_networks_mean_nothing(tmp_path):
    layers = [torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)]
    net, x = torch.nn.Sequential(*layers), torch.randn(5, 3)
    net.num_classes, net.diffusion = 2, torch.nn.Identity()
    quantized = ann2snn.quantize(net, 4, [x])
    assert_equal(written(tmp_path / "net.pt2", quantized).module()(x), plain_answer(quantized, x))


def test_folded_thresholds_are_written(tmp_path):
    x = torch.randn(5, 3)
    layers = [torch.nn.Linear(3, 8), ann2snn.quant.QuantReLU(3), torch.nn.Linear(8, 2)]
    folded = ann2snn.fold_thresholds(ann2snn.convert(torch.nn.Sequential(*layers).eval()), x)
    assert_equal(written(tmp_path / "folded.pt2", folded, x).module()(x), plain_answer(folded, x))


@pytest.mark.slow
def test_the_network_with_attention(tmp_path):
    torch.manual_seed(0)
    config = ann2snn.nets.attention_unet.AttentionUNetConfig(
        1, 8, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn=(1,), norm_groups=4, bits=4
    )
    net = ann2snn.nets.attention_unet.AttentionUNet(config).eval()
    call = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    program = written(tmp_path / "attention.pt2", net, *call).module()  # whole times: t is a tensor of integers
    assert_equal(program(*call), plain_answer(net, *call))


@pytest.mark.slow
def test_diffusers_networks(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    snn = ann2snn.convert(ann2snn.quantize(model, 4, calibrate=[(x, t)]))
    program = written(tmp_path / "theirs.pt2", snn, x, t, return_dict=False).module()
    with torch.no_grad():
        assert_equal(program(x, t, return_dict=False)[0], snn(x, t).sample)


def refusals():
    net = exact_network()
    stream = ann2snn.convert(net, schedule="stream")
    currents = ann2snn.convert(net, schedule="stream", stream_norm="per_step", if_neuron="reference")
    random = torch.nn.Sequential(*net, torch.nn.Dropout())
    return [
        (stream, "--schedule=layer_sync"),
        (currents, "--schedule=layer_sync"),
        (ann2snn.as_device(ann2snn.convert(net), torch.zeros(1, 2, 4, 4)), "export the network it was made of"),
        (random.train(), "call .eval() first"),
        (torch.nn.Linear(2, 2).eval(), "quantize it first"),
    ]


@pytest.mark.parametrize("kind", ["program", "onnx"])
def test_what_is_no_single_pass_of_quantizers_is_refused_in_one_line(tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnx onnxscript")
    export = {"program": ann2snn.export_program, "onnx": ann2snn.export_onnx}[kind]
    for net, cure in refusals():
        with pytest.raises(ann2snn.UserError, match=re.escape(cure)):
            export(net, tmp_path / "net", torch.zeros(1, 2, 4, 4))
    snn = ann2snn.convert(exact_network())
    with snn.carrying(), pytest.raises(ann2snn.UserError, match="carried"):
        export(snn, tmp_path / "net", torch.zeros(1, 2, 4, 4))
    with pytest.raises(ann2snn.UserError, match="give an example"):
        export(snn, tmp_path / "net")
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ann2snn.UserError, match="nothing is overwritten"):
        export(snn, tmp_path / "mine", torch.zeros(1, 2, 4, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and (tmp_path / "mine").read_text() == "precious"


def test_a_forward_pass_that_depends_on_values_is_refused_in_one_line(tmp_path):
    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.act = ann2snn.quant.QuantReLU(2)

        def forward(self, x):
            return self.act(x) if x.sum() > 0 else x

    with pytest.raises(ann2snn.UserError, match="torch.export cannot follow") as error:
        ann2snn.export_program(Branching().eval(), tmp_path / "net", torch.ones(2, 3))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_directly_trained_networks_are_refused(tmp_path):
    net = ann2snn.nets.sddpm.SDDPM(ann2snn.nets.sddpm.SDDPMConfig(ch=32, ch_mult=(1,), num_res_blocks=1, image_size=8))
    with pytest.raises(ann2snn.UserError, match="directly trained"):
        check_exported(net, tmp_path / "net", "program")


@pytest.mark.slow
def test_a_network_of_classes_takes_them_as_an_input(tmp_path):
    net = unet(ch_mult=(1,), image_size=4, num_classes=3, bit=8)
    torch.nn.init.normal_(net.class_embedding.weight)
    program = written(tmp_path / "classes.pt2", net).module()
    x, t = torch.randn(3, 3, 4, 4), torch.tensor([7.0, 7.0, 900.0])
    answers = [plain_answer(net, x, t, torch.tensor(y)) for y in ([0, 1, 2], [3, 3, 3])]
    assert_equal(program(x, t, torch.tensor([0, 1, 2])), answers[0])
    assert_equal(answers[1], plain_answer(net, x, t))
    assert not torch.equal(*answers)
