"""Images that are given to networks on latents: SDEdit, RePaint and inversion, and what each part of the way loses."""

import copy
import math

import pytest
import torch
from torch import nn

import ann2snn
from ann2snn.config import DiffusionConfig
from ann2snn.data import to_model_range, to_uint8
from ann2snn.diffusion import VP, ImageNoise
from ann2snn.errors import UserError
from ann2snn.latent import Autoencoder, AutoencoderConfig, ConvAutoencoder
from ann2snn.latent.autoencoder import Decoder, Encoder
from ann2snn.latent.files import autoencoder_of
from tests.generate.denoisers import Exact
from tests.generate.test_editing import pictures
from tests.helpers import assert_equal, random_ann


@pytest.fixture(scope="module")
def autoencoder():
    """A fresh one of grey images: latents of 2 channels, of 2x2 pixels each."""
    torch.manual_seed(0)
    net = ConvAutoencoder(AutoencoderConfig(channels=1, image_size=8, latent_channels=2, width=8, halvings=1))
    net.shift.fill_(0.1)
    net.scale.fill_(3.0)
    return autoencoder_of(net)


@pytest.fixture(scope="module")
def ann(autoencoder):
    """A network on its latents, of images 8x12, that has no autoencoder with it."""
    net = random_ann(in_channels=2, image_size=(4, 6))
    net.diffusion = DiffusionConfig(diffusion_steps=20, **autoencoder.space)
    return net


def images(n: int, seed: int = 0) -> torch.Tensor:
    return pictures(3 * n, 1, 8, seed).repeat(1, 1, 1, 2)[:n, :, :, 2:14]


def corner() -> torch.Tensor:
    """A mask whose edges are not those of latents."""
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[3:, 5:] = True
    return mask


EDITS = {
    "edit": lambda net, images, mask, **how: ann2snn.edit(net, images, 0.5, steps=4, **how),
    "inpaint": lambda net, images, mask, **how: ann2snn.inpaint(net, images, mask, 4, resamples=2, **how),
    "invert": lambda net, images, mask, **how: ann2snn.invert(net, images, 4, **how),
    "round_trip": lambda net, images, mask, **how: ann2snn.round_trip(net, images, 4, **how).images,
    "interpolate": lambda net, images, mask, **how: ann2snn.interpolate(net, 1, 2, len(images), steps=4, **how),
}


@pytest.mark.parametrize("name", EDITS)
def test_spiking_networks_do_what_their_originals_do(ann, autoencoder, name):
    expected = EDITS[name](ann, images(3), corner(), autoencoder=autoencoder)
    assert expected.shape == ((3, 2, 4, 6) if name == "invert" else (3, 1, 8, 12))
    owner = copy.deepcopy(ann)
    owner.autoencoder = autoencoder
    assert_equal(EDITS[name](ann2snn.convert(owner), images(3), corner()), expected)
    assert_equal(EDITS[name](ann2snn.convert(ann), images(3), corner(), carry=True, autoencoder=autoencoder), expected)


@pytest.mark.parametrize("name", [*EDITS, "denoising_loss", "noise_statistics"])
def test_an_autoencoder_that_changes_nothing_leaves_what_happens_on_images(name):
    class Twice(nn.Module):
        def forward(self, x):
            return torch.cat([x, x], dim=1)

    plain, none, one = nn.Identity(), torch.zeros(1), torch.ones(1)
    scaled = nn.Conv2d(1, 1, 1)  # has a device, as every autoencoder
    nn.init.ones_(scaled.weight)
    nn.init.zeros_(scaled.bias)
    parts = Encoder(nn.Sequential(scaled, Twice()), plain, none, one), Decoder(plain, scaled, none, one)
    same = Autoencoder(*parts, (1, 1, 1), {})
    calls = EDITS | {
        "denoising_loss": lambda net, images, mask, **how: ann2snn.denoising_loss(net, images, **how),
        "noise_statistics": lambda net, images, mask, **how: ann2snn.noise_statistics(
            net, images, steps=4, **how
        ).nan_to_num(),
    }
    net = random_ann(in_channels=1, image_size=(8, 12))
    how = {} if name in ("invert", "round_trip", "denoising_loss") else {"clip": False}
    expected = calls[name](net, images(3), corner(), **how)
    net.diffusion = DiffusionConfig(diffusion_steps=20, **same.space)
    assert_equal(calls[name](net, images(3), corner(), autoencoder=same), expected)


def test_a_latent_is_noised_sampled_and_decoded(autoencoder):
    vp = VP(DiffusionConfig(diffusion_steps=40, **autoencoder.space))
    net = Exact(lambda x, t: torch.tanh(x + t.to(x).view(-1, 1, 1, 1) / 40), vp.config, side=4, channels=2)
    given, kept = pictures(2, 1, 8), vp.alphas_bar[[19, 10, 0]]
    noise = ImageNoise(5, range(2), (2, 4, 4), "cpu", torch.float64)()
    x = kept[0].sqrt() * autoencoder.encode(given).double() + (1 - kept[0]).sqrt() * noise
    for time, now, following in zip((19, 10, 0), kept, (*kept[1:], torch.tensor(1.0)), strict=True):
        eps = net(x, torch.full((2,), time))
        x = following.sqrt() * (x - (1 - now).sqrt() * eps) / now.sqrt() + (1 - following).sqrt() * eps
    assert x.abs().max() > 1.5  # beyond the range of images
    made = ann2snn.edit(net, given, 0.5, steps=3, seed=5, autoencoder=autoencoder)
    assert_equal(made, to_uint8(autoencoder.decode(x)))


# ---- RePaint --------------------------------------------------------------------------------------------------------


class Watched(Autoencoder):
    """Another one that keeps what it is given."""

    def __init__(self, other: Autoencoder) -> None:
        self.__dict__.update(other.__dict__, encoded=[], decoded=[])

    def encode(self, images):
        self.encoded.append(images)
        return super().encode(images)

    def decode(self, latents):
        self.decoded.append(latents)
        return super().decode(latents)


def test_a_latent_is_known_where_all_of_its_pixels_are(ann, autoencoder):
    watched, given, mask = Watched(autoencoder), images(2), corner()
    made = ann2snn.inpaint(ann, given, mask, 4, resamples=1, autoencoder=watched)
    assert_equal(made[..., ~mask], given[..., ~mask])
    assert (made != given)[..., mask].any()
    ((seen,), (end,)) = watched.encoded, watched.decoded
    known = torch.tensor([[not mask[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].any() for j in range(6)] for i in range(4)])
    assert 0 < known.sum() < known.numel()
    assert_equal((end[:2] == autoencoder.encode(seen)).all(dim=(0, 1)), known)
    decoded = to_uint8(autoencoder.decode(end))[:2]
    assert_equal(made[..., mask], decoded[..., mask])


def test_nothing_of_the_pixels_that_are_made_anew_enters(ann, autoencoder):
    given, mask = images(2), corner()
    others = torch.where(mask, images(2, seed=1), given)
    first, second = (ann2snn.inpaint(ann, x, mask, 3, resamples=1, autoencoder=autoencoder) for x in (given, others))
    assert not torch.equal(given, others)
    assert_equal(first, second)


def test_the_encoder_sees_the_nearest_known_pixels(ann, autoencoder):
    watched, given = Watched(autoencoder), images(1)
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:, 4:11] = True
    ann2snn.inpaint(ann, given, mask, 2, resamples=1, autoencoder=watched)
    nearest = [0, 1, 2, 3, 3, 3, 3, None, 11, 11, 11, 11]  # column 7 is as far from both sides
    for column, source in enumerate(nearest):
        sources = (3, 11) if source is None else (source,)
        assert any(torch.equal(watched.encoded[0][..., column], given[..., source]) for source in sources)


def test_all_of_an_image_can_be_made_anew_but_not_all_of_its_latents_and_less_of_it(ann, autoencoder):
    everything = torch.ones(8, 12, dtype=torch.bool)
    made = [ann2snn.inpaint(ann, images(2, seed), everything, 3, autoencoder=autoencoder) for seed in (0, 1)]
    assert_equal(*made)
    everything[::2, ::2] = False
    with pytest.raises(UserError, match="--inpaint: the mask leaves no latent known; leave whole 2x2 blocks of pixels"):
        ann2snn.inpaint(ann, images(1), everything, 3, autoencoder=autoencoder)
    nothing = torch.zeros_like(everything)
    assert_equal(ann2snn.inpaint(ann, images(2), nothing, 3, autoencoder=autoencoder), images(2))


# ---- inversion ------------------------------------------------------------------------------------------------------


def test_the_round_trip_s_error_is_told_apart(autoencoder):
    net = Exact(lambda x, t: 0.3 * x, DiffusionConfig(diffusion_steps=100, **autoencoder.space), side=4, channels=2)
    given = pictures(3, 1, 8)
    trip = ann2snn.round_trip(net, given, 5, autoencoder=autoencoder)
    assert trip.noise.shape == (3, 2, 4, 4)
    how = {"steps": 5, "clip": False, "progress": False, "autoencoder": autoencoder}
    assert_equal(trip.images, ann2snn.sample(net, 3, x_T=trip.noise, **how))
    latents = autoencoder.encode(given)
    decoded = to_uint8(autoencoder.decode(latents))
    assert_equal(trip.latent.decoded, decoded)
    pairs = (
        (trip, trip.images, given),
        (trip.latent.autoencoder, decoded, given),
        (trip.latent.diffusion, trip.images, decoded),
    )
    for error, made, expected in pairs:
        mse = float((made.double() - expected.double()).square().mean())
        assert 0 < error.rmse == pytest.approx(math.sqrt(mse)) and error.psnr == pytest.approx(
            10 * math.log10(255**2 / mse)
        )
    ratio = 1.0  # every step multiplies all values alike
    kept = [1.0, *VP(net.diffusion).alphas_bar[[0, 25, 50, 74, 99]].tolist()]
    for now, then in zip(kept, kept[1:], strict=False):
        down = lambda a, b, eps: (b / a) ** 0.5 * (1 - (1 - a) ** 0.5 * eps) + (1 - b) ** 0.5 * eps  # noqa: E731
        ratio *= down(now, then, 0.3) * down(then, now, 0.3)
    assert trip.latent.rmse == pytest.approx(abs(ratio - 1) * float(latents.square().mean().sqrt()), rel=1e-5)
    exact = ann2snn.round_trip(net, given, 5, iterations=60, autoencoder=autoencoder)
    assert exact.latent.rmse < 1e-6 and exact.latent.diffusion == (0, math.inf)
    assert (exact.rmse, exact.psnr) == exact.latent.autoencoder


# ---- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EDITS)
def test_what_does_not_fit_is_refused_by_name(ann, autoencoder, name):
    torch.manual_seed(1)
    other = autoencoder_of(ConvAutoencoder(AutoencoderConfig(1, 8, 2, 8, 1)))
    grey, plain = random_ann(in_channels=1, image_size=(8, 12)), images(1)
    cases = [
        (ann, plain, None, "makes latents of the autoencoder"),
        (ann, plain, other, f"--autoencoder is {other.identity}"),
        (ann, plain, "a.pt", "autoencoder=str: use ann2snn.load_autoencoder"),
        (grey, plain, other, "was trained on images"),
    ]
    if name != "interpolate":
        cases.append(
            (ann, pictures(1, 3), autoencoder, r"images: uint8 \[1, 3, 8, 8\], expected uint8 \[N, 1, 8, 12\]")
        )
        cases.append((ann, to_model_range(plain), autoencoder, "images: float32"))
    for net, given, offered, words in cases:
        with pytest.raises(UserError, match=words):
            EDITS[name](net, given, corner(), autoencoder=offered)
