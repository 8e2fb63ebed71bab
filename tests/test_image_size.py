"""Images that are no squares: a transposed network on transposed images answers transposed, at every stage."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import center_crop, pil_to_tensor

import ann2snn
from ann2snn import UserError
from ann2snn.checkpoints import checkpoint
from ann2snn.config import ImageSize, UNetConfig, read_size
from ann2snn.data.decode import fit
from ann2snn.diffusion import ImageNoise
from ann2snn.diffusion.blur import BDM, BDMConfig
from ann2snn.metrics.fad import FadExtractor
from ann2snn.metrics.fad_encoder import AutoEncoder
from ann2snn.nets.architecture import build_network
from ann2snn.nets.attention_unet import AttentionUNetConfig
from ann2snn.nets.fsddim import FSDDIMConfig
from ann2snn.nets.sddpm import SDDPMConfig
from ann2snn.report.denoising import denoising
from ann2snn.report.grids import _cells
from ann2snn.run.paths import SamplingPaths, load_paths, save_paths
from tests.helpers import assert_close, assert_equal, random_ann, random_batch

SMALL = {"in_channels": 1, "image_size": (4, 8), "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1}
CONFIGS = [
    UNetConfig(**SMALL, norm_groups=2, bits=4, spike_driven=True),
    AttentionUNetConfig(**SMALL, norm_groups=2, bits=4),
    SDDPMConfig(**SMALL),
    FSDDIMConfig(**SMALL),
]


def transposed(net: nn.Module) -> nn.Module:
    """The network for transposed images: every kernel is transposed."""
    other = copy.deepcopy(net)
    for value in other.parameters():
        if value.dim() in (4, 5) and value.shape[2:4] == (3, 3):
            value.data = value.data.transpose(2, 3)
    size = other.config.image_size
    object.__setattr__(other.config, "image_size", ImageSize(size.width, size.height))
    return other


@pytest.fixture(scope="module")
def ann():
    return random_ann(image_size=(4, 8))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.arch)
def test_networks(config):
    net, generator = build_network(config).double().eval(), torch.Generator().manual_seed(1)
    for value in net.parameters():
        if value.dim() > 1:
            nn.init.normal_(value, std=(len(value) / value.numel()) ** 0.5, generator=generator)
    x, t = torch.randn(2, 1, 4, 8, generator=generator, dtype=torch.float64), torch.tensor([3, 700])
    with torch.no_grad():
        answer = net(x, t)
        assert_close(transposed(net)(x.mT, t).mT, answer, 1e-10)
    assert float(answer.std()) > 0.01
    assert type(config)(**config.to_dict()) == config and config.to_dict()["image_size"] == [4, 8]


def test_the_spiking_network_equals_the_quantized_one(ann):
    x, t = random_batch(ann)
    expected = ann(x, t)
    for how in ({}, {"schedule": "stream", "settle_steps": "auto"}, {"schedule": "stream", "burst": 3}):
        assert_equal(ann2snn.convert(ann, **how)(x, t), expected)
    costs = [ann2snn.cost(ann2snn.convert(net), *call) for net, call in ((ann, (x, t)), (transposed(ann), (x.mT, t)))]
    assert costs[0].layers == costs[1].layers


@pytest.mark.parametrize("how", [{}, {"sampler": "dpmpp"}, {"sampler": "gddim"}], ids=str)
def test_samples_and_edits(ann, how):
    other, noise = transposed(ann), ImageNoise(0, [0, 1], (3, 4, 8), "cpu")().double()
    images = ann2snn.sample(ann, 2, steps=4, x_T=noise, progress=False, **how)
    assert images.shape == (2, 3, 4, 8)
    assert_equal(ann2snn.sample(other, 2, steps=4, x_T=noise.mT, progress=False, **how).mT, images)


def test_edits(ann):
    images = ann2snn.sample(ann2snn.convert(ann), 2, steps=2, progress=False)
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, 5:] = True
    made = ann2snn.inpaint(ann, images, mask, steps=3, resamples=1)
    assert_equal(made[..., :5], images[..., :5])
    with pytest.raises(UserError, match=r"mask: expected a bool tensor \[4, 8\]"):
        ann2snn.inpaint(ann, images, mask.T)
    with pytest.raises(UserError, match=r"expected uint8 \[N, 3, 4, 8\]"):
        ann2snn.edit(ann, images.mT)
    for result in (ann2snn.edit(ann, images, steps=2), ann2snn.interpolate(ann, 0, 1, 2, steps=2)):
        assert result.shape == images.shape
    assert ann2snn.round_trip(ann, images, steps=2).noise.shape == images.shape


def test_blur_diffusion():
    wide, tall = (BDM(BDMConfig(image_size=size, sigma_blur_max=3.0)) for size in ((4, 6), (6, 4)))
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(wide.idct(wide.dct(x)), x, 1e-14)
    times, noise = torch.tensor([0.2, 0.7], dtype=torch.float64), x.flip(0)
    assert_close(tall.diffuse(x.mT, times, noise.mT).mT, wide.diffuse(x, times, noise), 1e-14)
    with pytest.raises(UserError, match="images of 4x6 pixels, not for 6x4"):
        wide.dct(x.mT)


def test_a_users_network_may_tell_one_number(ann):
    class Own(nn.Module):
        in_channels, image_size, diffusion = 3, 4, ann.diffusion

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x, t):
            return self.scale * x

    assert ann2snn.sample(Own(), 2, steps=2, progress=False).shape == (2, 3, 4, 4)
    Own.image_size = (4, 8)
    assert ann2snn.sample(Own(), 2, steps=2, progress=False).shape == (2, 3, 4, 8)
    Own.image_size = (4, 8, 2)
    with pytest.raises(UserError, match="image_size=4,8,2: give one number, or height and width"):
        ann2snn.sample(Own(), 2, steps=2, progress=False)


def test_checkpoints(tmp_path, ann):
    path = tmp_path / "net.pt"
    for size, stored in (((4, 8), [4, 8]), (4, 4)):
        payload = checkpoint.payload_of(random_ann(image_size=size))
        assert payload["config"]["unet"]["image_size"] == stored  # one number as ever for squares
        checkpoint.save(path, payload)
        assert ann2snn.load(path, image_size=size).image_size == ImageSize(*np.broadcast_to(size, 2).tolist())
        with pytest.raises(UserError, match=f"--img_size=8,4 contradicts .*made with {'4,8' if size != 4 else '4'}:"):
            ann2snn.load(path, image_size=(8, 4))
    ann2snn.save(ann2snn.convert(ann), tmp_path / "folder")
    assert ann2snn.load(tmp_path / "folder").image_size == (4, 8)


def test_texts():
    assert [read_size(text) for text in ("32", "32,48")] == [(32, 32), (32, 48)]
    assert [str(read_size(text)) for text in ("32", "32,32", "32,48")] == ["32", "32", "32,48"]
    for text in ("", "32,", "32x48", "1,2,3", "3.5"):
        with pytest.raises(ValueError, match="HEIGHT,WIDTH"):
            read_size(text)


def picture(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_squares_are_cut_and_scaled_as_ever():
    for height, width, size, crop in ((28, 28, 28, None), (30, 47, 16, None), (47, 30, 33, None), (218, 178, 64, 140)):
        side = min(height, width, crop or width)
        expected = center_crop(picture(height, width), [side, side]).resize((size, size), Image.Resampling.BILINEAR)
        assert_equal(fit(picture(height, width), ImageSize(size, size), crop), pil_to_tensor(expected))


def test_the_largest_rectangle_of_the_shape_is_cut():
    cases = [  # height and width of the picture, size, crop, height and width that are cut
        (60, 90, ImageSize(4, 6), None, (60, 90)),
        (60, 90, ImageSize(6, 4), None, (60, 40)),
        (28, 28, ImageSize(16, 24), None, (19, 28)),
        (218, 178, ImageSize(48, 32), 140, (210, 140)),
        (218, 178, ImageSize(32, 48), 140, (119, 178)),
        (1, 9, ImageSize(9, 1), None, (1, 1)),
    ]  # fmt: skip
    for height, width, size, crop, cut in cases:
        rectangle = center_crop(picture(height, width), list(cut))
        expected = rectangle.resize((size.width, size.height), Image.Resampling.BILINEAR)
        assert_equal(fit(picture(height, width), size, crop), pil_to_tensor(expected))


def test_the_published_autoencoders_take_squares():
    extractor = FadExtractor(AutoEncoder(), "eval")
    with pytest.raises(UserError, match=r"takes squares, the images have 32x48 pixels \(--img_size=32,48\)"):
        extractor(torch.zeros(2, 1, 32, 48, dtype=torch.uint8))


def test_the_report(tmp_path):
    states = np.random.default_rng(0).integers(0, 256, (3, 2, 1, 100, 150), dtype=np.uint8)
    save_paths(tmp_path / "trajectory.npz", SamplingPaths(states, states, np.array([9.0, 4.0]), {}))
    paths = load_paths(tmp_path / "trajectory.npz")
    assert np.array_equal(paths.ann, states) and "the two agree in every one" in denoising(paths)
    grid = Image.new("L", (2 * 26 + 2, 3 * 18 + 2))
    assert [cell.size for cell in _cells(grid, (24, 16))] == [(24, 16)] * 6
    assert _cells(grid, (16, 24)) == []


def test_diffusers_is_told_height_and_width(ann):
    assert ann2snn.in_pipeline(ann).config.sample_size == [4, 8]
    assert ann2snn.in_pipeline(random_ann()).config.sample_size == 4


@pytest.mark.slow
def test_exports(tmp_path, ann):
    ann2snn.export_program(ann, tmp_path / "net.pt2")
    x, t = random_batch(ann)
    with torch.no_grad():
        assert_close(torch.export.load(tmp_path / "net.pt2").module()(x, t.double()), ann(x, t), 1e-12)
