import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ann2snn.config import DiffusionConfig
from ann2snn.errors import UserError
from ann2snn.nets.attention_unet import AttentionUNet, AttentionUNetConfig, sinusoidal_features
from tests.helpers import assert_close, assert_equal

CELEBA = {"image_size": 64, "attn": (2,), "dropout": 0.0}
CELEBA_HQ = {"image_size": 256, "ch_mult": (1, 1, 2, 2, 4, 4), "attn": (4,), "dropout": 0.0}
SMALL = {"ch": 8, "norm_groups": 4, "ch_mult": (1, 2, 3), "attn": (0, 2), "image_size": 12, "dropout": 0.0}


def small_net(seed=0, **options):
    """A small network in float64 whose weights, biases and affines are random and keep every layer busy."""
    net = AttentionUNet(AttentionUNetConfig(**SMALL | options))
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.named_parameters():
        spread = 0.3 if value.ndim == 1 else 1.2 * value[0].numel() ** -0.5
        is_gain = value.ndim == 1 and name.endswith("weight")
        nn.init.normal_(value, mean=1.0 if is_gain else 0.0, std=spread, generator=generator)
    return net.double().eval()


def batch(net, n=2, seed=0):
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(n, net.in_channels, *net.image_size, generator=generator, dtype=torch.float64)
    return x, 1000 * torch.rand(n, generator=generator, dtype=torch.float64)


def published_forward(state, config, x, t):
    """The same network written a second time, as formulas over the published parameter names."""

    def conv(name, h, stride=1, padding=1):
        return F.conv2d(h, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)

    def linear(name, h):
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, h):
        groups = h.unflatten(1, (config.norm_groups, -1)).flatten(2)
        variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
        h = ((groups - mean) / (variance + 1e-6).sqrt()).reshape(h.shape)
        return h * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def silu(h):
        return h / (1 + torch.exp(-h))

    def residual(name, h, temb):
        inner = (
            conv(f"{name}.conv1", silu(norm(f"{name}.norm1", h))) + linear(f"{name}.fc", silu(temb))[..., None, None]
        )
        inner = conv(f"{name}.conv2", silu(norm(f"{name}.norm2", inner)))
        return inner + (conv(f"{name}.skip", h, padding=0) if f"{name}.skip.weight" in state else h)

    def attention(name, h):
        q, k, v = conv(f"{name}.project_in", norm(f"{name}.norm", h), padding=0).chunk(3, dim=1)
        weights = torch.einsum("nchw,ncij->nhwij", q, k) / math.sqrt(h.shape[1])
        weights = weights.flatten(3).softmax(dim=3).reshape(weights.shape)
        return h + conv(f"{name}.project_out", torch.einsum("nhwij,ncij->nchw", weights, v), padding=0)

    def block(name, level, h, temb):
        if level in config.attn:
            return attention(f"{name}.1", residual(f"{name}.0", h, temb))
        return residual(name, h, temb)

    temb = linear("embed.2", silu(linear("embed.0", sinusoidal_features(t, config.ch).to(x.dtype))))
    h, count = conv("in_conv", x), config.num_res_blocks
    skips, last = [h], len(config.ch_mult) - 1
    for level in range(last + 1):
        for i in range(count):
            skips.append(h := block(f"downsamples.level_{level}.{i}", level, h, temb))
        if level != last:
            padded = torch.zeros(*h.shape[:2], h.shape[2] + 1, h.shape[3] + 1, dtype=h.dtype)
            padded[:, :, :-1, :-1] = h
            skips.append(h := conv(f"downsamples.level_{level}.{count}.1", padded, stride=2, padding=0))
    h = residual("middle.2", attention("middle.1", residual("middle.0", h, temb)), temb)
    for level in range(last, -1, -1):
        for i in range(count + 1):
            h = block(f"upsamples.level_{level}.{i}", level, torch.cat([h, skips.pop()], dim=1), temb)
        if level != 0:
            doubled = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            h = conv(f"upsamples.level_{level}.{count + 1}.1", doubled)
    return conv("out_conv.2", silu(norm("out_conv.0", h)))


@pytest.fixture(scope="module")
def default_net():
    with torch.device("meta"):  # names and shapes only
        return AttentionUNet(AttentionUNetConfig())


@pytest.mark.parametrize(("options", "parameters"), [({}, 35_746_307), (CELEBA, 35_746_307), (CELEBA_HQ, 113_673_219)])
def test_published_networks_have_the_published_number_of_parameters(options, parameters):
    with torch.device("meta"):
        net = AttentionUNet(AttentionUNetConfig(**options))
    assert sum(value.numel() for value in net.parameters()) == parameters
    assert sum(value.numel() for value in net.state_dict().values()) == parameters


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embed.0.weight", [512, 128]),
        ("embed.2.bias", [512]),
        ("in_conv.weight", [128, 3, 3, 3]),
        ("downsamples.level_0.0.norm1.weight", [128]),
        ("downsamples.level_0.1.conv1.weight", [128, 128, 3, 3]),
        ("downsamples.level_0.2.1.weight", [128, 128, 3, 3]),
        ("downsamples.level_1.0.0.skip.weight", [256, 128, 1, 1]),
        ("downsamples.level_1.0.0.fc.weight", [256, 512]),
        ("downsamples.level_1.1.1.project_in.weight", [768, 256, 1, 1]),
        ("downsamples.level_3.1.norm2.bias", [256]),
        ("middle.1.project_out.weight", [256, 256, 1, 1]),
        ("middle.2.conv2.weight", [256, 256, 3, 3]),
        ("upsamples.level_0.0.skip.weight", [128, 384, 1, 1]),
        ("upsamples.level_0.2.norm1.weight", [256]),
        ("upsamples.level_1.2.0.conv1.weight", [256, 384, 3, 3]),
        ("upsamples.level_1.2.1.norm.weight", [256]),
        ("upsamples.level_1.3.1.weight", [256, 256, 3, 3]),
        ("out_conv.0.weight", [128]),
        ("out_conv.2.bias", [3]),
    ],
)
def test_entries_named_in_the_published_layout(default_net, name, shape):
    assert list(default_net.state_dict()[name].shape) == shape


def test_attention_follows_every_block_of_its_levels_and_the_middle_one(default_net):
    names = {name.rsplit(".", 2)[0] for name in default_net.state_dict() if ".project_in." in name}
    down = {f"downsamples.level_1.{i}.1" for i in range(2)}
    assert names == {"middle.1", *down, *(f"upsamples.level_1.{i}.1" for i in range(3))}


@pytest.mark.parametrize("options", [{}, {"attn": (), "num_res_blocks": 1}, {"ch_mult": (2, 1), "attn": (1,)}])
def test_network_equals_its_formulas(options):
    net = small_net(**options)
    x, t = batch(net)
    assert_close(net(x, t), published_forward(net.state_dict(), net.config, x, t), 1e-12)


def test_time_features_are_sines_then_cosines():
    features = sinusoidal_features(torch.tensor([10]), 4)
    assert_close(features, torch.tensor([[-0.5440, 0.0010, -0.8391, 1.0000]]), 1e-4)
    features = sinusoidal_features(torch.tensor([0.0, 2.5]), 6)
    assert_equal(features[0], torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))
    angles = 2.5 * torch.tensor([1.0, 0.01, 0.0001])
    assert_close(features[1], torch.cat([angles.sin(), angles.cos()]), 1e-6)


def test_integer_and_equal_fractional_times_agree_and_others_do_not():
    net = small_net()
    x, _ = batch(net)
    whole = net(x, torch.tensor([3, 700]))
    assert_equal(net(x, torch.tensor([3.0, 700.0])), whole)
    assert (net(x, torch.tensor([3.5, 700.5])) - whole).abs().amax(dim=(1, 2, 3)).min() > 1e-6


def test_images_of_a_batch_do_not_mix():
    net = small_net()
    x, t = batch(net, 3)
    assert_close(net(x, t)[1:2], net(x[1:2], t[1:2]), 1e-12)


def test_memory_layout_does_not_matter():
    net = small_net()
    x, t = batch(net)
    expected = net(x, t)
    found = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found, expected, 1e-12)


def test_blocks_of_pixels_become_channels_and_back():
    net = small_net(block_size=2, image_size=24, out_channels=1)
    inner = AttentionUNet(AttentionUNetConfig(**SMALL | {"in_channels": 12, "out_channels": 4})).double().eval()
    inner.load_state_dict(net.state_dict(), strict=True)
    x, t = batch(net)
    found = net(x, t)
    assert found.shape == (2, 1, 24, 24)
    # Channel 4c + 2i + j of the inner network is pixel (i, j) of every 2x2 block of channel c.
    shuffled = torch.stack([x[:, c, i::2, j::2] for c in range(3) for i in range(2) for j in range(2)], dim=1)
    output = inner(shuffled, t)
    for i in range(2):
        for j in range(2):
            assert_close(found[:, 0, i::2, j::2], output[:, 2 * i + j], 1e-12)


@pytest.mark.parametrize("options", [{"image_size": 64}, {"image_size": 256, "ch_mult": (1,) * 6, "attn": (5,)}])
def test_large_images_keep_their_shape(options):
    net = AttentionUNet(AttentionUNetConfig(**SMALL | options)).eval()
    x = torch.randn(1, 3, *net.image_size)
    with torch.no_grad():
        assert net(x, torch.tensor([5.0])).shape == x.shape


def test_initial_weights():
    torch.manual_seed(0)
    net = AttentionUNet(AttentionUNetConfig(**SMALL))
    quiet = set()
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            weight = module.weight.detach()
            fans = (weight.shape[0] + weight.shape[1]) * weight[0, 0].numel()
            largest = float(weight.abs().max()) / math.sqrt(6 / fans)
            gain = 1.0 if largest > 0.01 else 1e-5
            assert 0.9 * gain < largest <= gain * (1 + 1e-6), name
            quiet |= {name} if gain < 1 else set()
            assert not module.bias.any(), name
    endings = ("conv2", "project_out", "out_conv.2")
    assert quiet == {name for name, _ in net.named_modules() if name.endswith(endings)}
    # Residual blocks: 3 levels of 2 down and 3 up, and 2 in the middle. Attention: two of the levels, and the middle.
    assert len(quiet) == 17 + 11 + 1


def test_output_is_almost_zero_at_first_and_depends_on_time_after_one_update():
    torch.manual_seed(0)
    net = AttentionUNet(AttentionUNetConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, image_size=8))
    x, noise = torch.randn(2, 4, 3, 8, 8)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    early, late = torch.full((4,), 10.0), torch.full((4,), 900.0)
    output = net(x, early)
    assert output.abs().max() < 1e-3
    (output - noise).square().mean().backward()
    optimizer.step()
    net.eval()
    with torch.no_grad():
        assert (net(x, early) - net(x, late)).abs().max() > 1e-6


@pytest.mark.slow
def test_a_fixed_batch_is_learned_by_heart():
    torch.manual_seed(0)
    net = AttentionUNet(AttentionUNetConfig(**SMALL | {"ch": 16, "ch_mult": (1, 2), "attn": (1,), "image_size": 8}))
    x, noise = torch.randn(2, 8, 3, 8, 8)
    t = torch.arange(8) * 100.0
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(80):
        loss = (net(x, t) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01  # the noise's own power is 1


def test_every_parameter_takes_part():
    net = small_net()
    x, t = batch(net)
    net(x, t).square().mean().backward()
    for name, value in net.named_parameters():
        gradient = value.grad
        if name.endswith("project_in.bias"):  # a key's bias adds the same to all scores: softmax does not see it
            queries, keys, values = gradient.chunk(3)
            assert keys.abs().max() < 1e-12
            gradient = torch.cat([queries, values])
        assert gradient.abs().min() > 0, name


def test_dropout_acts_in_training_only():
    net = small_net(dropout=0.5)
    x, t = batch(net)
    assert_equal(net(x, t), net(x, t))
    assert_equal(net(x, t), small_net()(x, t))
    net.train()
    assert not torch.equal(net(x, t), net(x, t))


def test_network_knows_itself():
    diffusion = DiffusionConfig(diffusion_steps=50)
    config = AttentionUNetConfig(**SMALL | {"in_channels": 2, "out_channels": 4})
    net = AttentionUNet(config, diffusion)
    assert (net.in_channels, net.image_size, net.config, net.diffusion) == (2, (12, 12), config, diffusion)
    assert net(torch.zeros(1, 2, 12, 12), torch.zeros(1)).shape == (1, 4, 12, 12)
    assert AttentionUNet(AttentionUNetConfig(**SMALL)).diffusion == DiffusionConfig()


@pytest.mark.parametrize("options", [{}, CELEBA_HQ, SMALL | {"out_channels": 6}])
def test_settings_survive_json(options):
    config = AttentionUNetConfig(**options)
    assert AttentionUNetConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ch": 2, "norm_groups": 1}, "--ch=2"),
        ({"ch": 33, "norm_groups": 1}, "--ch=33"),
        ({"ch": 48}, "--norm_groups=32"),
        ({"norm_groups": 0}, "--norm_groups=0"),
        ({"ch_mult": ()}, "--ch_mult="),
        ({"ch_mult": (1, 0)}, "--ch_mult=1,0"),
        ({"ch_mult": (1, 2, 2, 2, 1, 2, 2, 2, 2)}, "--ch_mult"),
        ({"ch_mult": (1, 1.5)}, "--ch_mult"),
        ({"attn": (4,)}, "from 0 to 3"),
        ({"attn": (-1,)}, "--attn=-1"),
        ({"attn": (1, 1)}, "--attn=1,1"),
        ({"image_size": 20}, "multiple of 8"),
        ({"block_size": 2, "image_size": 40}, "multiple of 16"),
        ({"block_size": 0}, "--block_size=0"),
        ({"num_res_blocks": 0}, "--num_res_blocks=0"),
        ({"dropout": 1.0}, "--dropout"),
        ({"dropout": math.nan}, "--dropout"),
        ({"in_channels": 0}, "image channels"),
        ({"out_channels": 0}, "0 output channels"),
    ],
)
def test_settings_that_make_no_network_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        AttentionUNetConfig(**options)
