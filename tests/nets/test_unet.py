import pytest
import torch

from ann2snn.config import UNetConfig
from ann2snn.errors import UserError
from ann2snn.nets import UNet
from ann2snn.nets.parts import SinusoidalTime
from tests.helpers import assert_close, assert_equal, golden_state, random_ann, random_batch


@pytest.fixture(scope="module")
def default_net():
    with torch.device("meta"):  # names and shapes only
        return UNet(UNetConfig())


def test_default_network_has_the_references_entries_and_size(default_net):
    state = default_net.state_dict()
    assert len(state) == 337
    assert sum(name.endswith("act_alpha") for name in state) == 68
    assert sum(value.numel() for value in state.values()) == 34_292_295
    reference = golden_state("full")  # ch 32 instead of 128, otherwise the same
    assert state.keys() == reference.keys()
    for name, value in state.items():
        ours, theirs = list(value.shape), list(reference[name].shape)
        assert len(ours) == len(theirs)
        assert all(a == b or a == 4 * b for a, b in zip(ours, theirs, strict=True)), name


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("time_embedding.timembedding.0.weight", [1000, 128]),
        ("time_embedding.timembedding.1.weight", [512, 128]),
        ("time_embedding.timembedding.2.act_alpha", []),
        ("head.weight", [128, 3, 3, 3]),
        ("downblocks.2.main.weight", [128, 128, 3, 3]),
        ("downblocks.3.block1.2.weight", [256, 128, 3, 3]),
        ("downblocks.3.shortcut.weight", [256, 128, 1, 1]),
        ("middleblocks.1.block2.3.weight", [256, 256, 3, 3]),
        ("upblocks.0.temb_proj.1.weight", [256, 512]),
        ("upblocks.14.block1.0.weight", [256]),
        ("tail.0.weight", [128]),
        ("tail.1.act_alpha", []),
        ("tail.2.bias", [3]),
    ],
)
def test_entries_named_in_the_published_layout(default_net, name, shape):
    assert list(default_net.state_dict()[name].shape) == shape


def test_only_equal_widths_have_no_shortcut(default_net):
    names = {name.rsplit(".", 2)[0] for name in default_net.state_dict() if ".shortcut." in name}
    assert names == {"downblocks.3", *(f"upblocks.{i}" for i in range(15) if i not in (3, 7, 11))}


def test_time_features_are_interleaved_sines_and_cosines():
    features = SinusoidalTime(10, 6).double().features(torch.tensor([0.0, 2.5]))
    assert_equal(features[0], torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]))
    angles = 2.5 * torch.tensor([10000 ** (-i / 6) for i in (0, 2, 4)])
    expected = torch.stack([angles.sin(), angles.cos()], dim=1).flatten()
    torch.testing.assert_close(features[1], expected, rtol=1e-5, atol=1e-6)


def test_at_whole_times_features_equal_the_table():
    table = SinusoidalTime(50, 16)
    assert_equal(table(torch.arange(50)), table.weight)
    assert_equal(table(torch.arange(50).double()), table.weight)


def test_times_may_be_fractional_and_lie_between():
    net = random_ann(bits=32)
    x, _ = random_batch(net, 1)
    with torch.no_grad():
        assert_equal(net(x, torch.tensor([3])), net(x, torch.tensor([3.0])))
        outputs = [net(x, torch.tensor([t])) for t in (3.0, 3.001, 4.0)]
    near, far = (outputs[1] - outputs[0]).norm(), (outputs[2] - outputs[0]).norm()
    assert 0 < near < 0.05 * far


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("mult", "size"), [((1,), 5), ((1, 2), 6), ((1, 2, 2), 8), ((2, 1, 1, 1), 8)])
def test_output_has_the_images_shape(channels, mult, size):
    net = random_ann(in_channels=channels, ch_mult=mult, image_size=size)
    x, t = random_batch(net, 3)
    with torch.no_grad():
        out = net(x, t)
    assert out.shape == x.shape == (3, channels, size, size)
    assert net.in_channels == channels and net.image_size == (size, size)


def test_images_of_a_batch_do_not_mix():
    net = random_ann(bits=3)
    x, t = random_batch(net, 3)
    with torch.no_grad():
        whole = net(x, t)
        assert_close(net(x[1:2], t[1:2]), whole[1:2], 1e-12)


def test_blocks_come_in_the_order_data_flow_through_them():
    net = random_ann(ch_mult=(1, 2), num_res_blocks=2)
    order = []
    for name, module in net.blocks():
        module.register_forward_hook(lambda *args, name=name: order.append(name))
    with torch.no_grad():
        net(*random_batch(net))
    names = [name for name, _ in net.blocks()]
    assert sorted(order) == sorted(names) and len(set(names)) == len(names)
    rest = [name for name in order if name not in ("head", "time_embedding")]
    assert rest == [name for name in names if name not in ("head", "time_embedding")]
    parameters = {id(p) for _, block in net.blocks() for p in block.parameters()}
    assert parameters == {id(p) for p in net.parameters()}


def test_a_fresh_network_starts_with_a_near_zero_output():
    torch.manual_seed(0)
    net = UNet(UNetConfig(ch=8, ch_mult=(1, 2), norm_groups=2, image_size=8, bits=4)).eval()
    with torch.no_grad():
        out = net(torch.randn(2, 3, 8, 8), torch.tensor([0, 999]))
    assert 0 < out.abs().max() < 1e-3


def test_a_full_precision_network_has_no_clips_and_edges_of_a_quantized_one_keep_8_bits():
    assert not any(name.endswith("act_alpha") for name in random_ann(bits=32).state_dict())
    net = random_ann(weight_bits=4)
    assert (net.head.bits, net.tail[2].bits, net.middleblocks[0].block1[2].bits) == (8, 8, 4)
    assert random_ann().head.bits == 32


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"ch_mult": (1, 2, 2, 2, 4)}, "--ch_mult=1,2,2,2,4"),
        ({"image_size": 30}, "--img_size=30"),
        ({"norm_groups": 24}, "--norm_groups=24"),
        ({"bits": 9}, "--bit=9"),
        ({"bits": 2.5}, "--bit=2.5"),
        ({"in_channels": 65}, "65 image channels"),
        ({"dropout": 1.0}, "--dropout=1.0"),
        ({"ch_mult": ()}, "--ch_mult="),
    ],
)
def test_impossible_shapes_are_refused_by_flag(options, flag):
    with pytest.raises(UserError) as refusal:
        UNetConfig(**options)
    assert flag in str(refusal.value) and "\n" not in str(refusal.value)
