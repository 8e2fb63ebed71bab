"""SDEdit, RePaint and DDIM's inversion, for quantized and spiking networks alike."""

import math

import pytest
import torch

import ann2snn
from ann2snn import UserError
from ann2snn.config import DiffusionConfig, ImageSize
from ann2snn.data import to_model_range, to_uint8
from ann2snn.diffusion import VP, ImageNoise
from ann2snn.diffusion.samplers import sample_ddim
from ann2snn.generate import inpainting
from ann2snn.generate.sampling import group_size
from tests.diffusion.vp_exact import normal, process
from tests.generate.denoisers import Exact, gaussian
from tests.helpers import assert_equal, random_ann

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
]


@pytest.fixture(scope="module")
def ann():
    return random_ann(image_size=8)


def pictures(n: int, channels: int = 3, side: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)


def left_half(side: int = 8) -> torch.Tensor:
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[:, : side // 2] = True
    return mask


EDITS = {
    "edit": lambda net, images, **how: ann2snn.edit(net, images, 0.5, steps=4, **how),
    "inpaint": lambda net, images, **how: ann2snn.inpaint(net, images, left_half(), 4, resamples=2, **how),
    "invert": lambda net, images, **how: ann2snn.invert(net, images, 4, **how),
    "round_trip": lambda net, images, **how: ann2snn.round_trip(net, images, 4, **how).images,
}


@pytest.mark.parametrize("name", EDITS)
def test_spiking_networks_do_what_their_originals_do(ann, name):
    expected = EDITS[name](ann, pictures(3))
    assert not expected.requires_grad
    for carry in (False, True):
        assert_equal(EDITS[name](ann2snn.convert(ann), pictures(3), carry=carry), expected)


@pytest.mark.parametrize("name", ["edit", "inpaint", "invert"])
def test_an_image_is_the_same_bytes_whatever_stands_beside_it(ann, name):
    images = pictures(group_size(ImageSize(8, 8)) + 2)
    whole, net = EDITS[name](ann.float(), images), ann.float()
    others = torch.cat([images[:3], pictures(len(images) - 3, seed=1)])
    assert_equal(EDITS[name](net, others)[:3], whole[:3])
    ann.double()


DRAWN = EDITS | {
    "interpolate": lambda net, images: ann2snn.interpolate(net, 1, 2, 2, steps=2),
    "noise_statistics": lambda net, images: ann2snn.noise_statistics(net, images, steps=2),
}


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_comes_of_a_network_that_has_diverged(name):
    net = Exact(lambda x, t: x * math.nan, DiffusionConfig(diffusion_steps=40), side=8)
    with pytest.raises(UserError, match="diverged"):
        DRAWN[name](net, pictures(2, 1, 8))


# ---- SDEdit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_editing_starts_in_the_middle_of_the_chain(strength):
    vp = VP(DiffusionConfig(diffusion_steps=40))
    net = Exact(lambda x, t: torch.tanh(x + t.to(x).view(-1, 1, 1, 1) / 40), vp.config)
    images = pictures(2, 1, 4)
    last = round(strength * 40) - 1
    x = to_model_range(images).double() * vp.alphas_bar[last] ** 0.5
    x = x + (1 - vp.alphas_bar[last]) ** 0.5 * ImageNoise(5, range(2), (1, 4, 4), "cpu", torch.float64)()
    times = [int(last * i / 4 + 0.5) for i in (4, 3, 2, 1, 0)]
    for time, following in zip(times, [*times[1:], None], strict=True):
        eps, now = net(x, torch.full((2,), time)), vp.alphas_bar[time]
        x_0 = (x - (1 - now) ** 0.5 * eps) / now**0.5
        x = x_0 if following is None else vp.alphas_bar[following] ** 0.5 * x_0
        x = x if following is None else x + (1 - vp.alphas_bar[following]) ** 0.5 * eps
    assert_equal(ann2snn.edit(net, images, strength, steps=5, clip=False, seed=5), to_uint8(x.clamp(-1, 1)))


def test_little_strength_changes_little():
    images = to_uint8(normal(4, 1, 4, 4).clamp(-2, 2) * 0.3)
    changes = [
        float((ann2snn.edit(gaussian(0.3), images, s, steps=1 if s == 0.01 else 5).float() - images).abs().mean())
        for s in (0.01, 0.1, 0.5, 1.0)
    ]
    assert changes == sorted(changes) and changes[0] < 2 < 20 < changes[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strength": 0.0}, "--strength=0.0"),
        ({"strength": 1.5}, "--strength=1.5"),
        ({"strength": float("nan")}, "--strength=nan"),
        ({"strength": 0.1}, "leaves 2 diffusion steps"),
        ({"sampler": "gddim"}, "--sampler=gddim: cannot start"),
        ({"sampler": "analytic_dpm"}, "--sampler=analytic_dpm: cannot start"),
        ({"images": torch.zeros(1, 3, 8, 8)}, "images: float32"),
        ({"images": pictures(1, 1)}, "images: uint8"),
        ({"images": pictures(1)[:0]}, "images: uint8"),
        ({"images": None}, "images: NoneType"),
        ({"net": torch.nn.Linear(1, 1)}, "net=Linear"),
    ],
    ids=str,
)
def test_editing_refuses(ann, arguments, words):
    with pytest.raises(UserError, match=words):
        ann2snn.edit(**{"net": ann, "images": pictures(1), "steps": 4} | arguments)


def test_every_other_process_is_refused():
    net = Exact(lambda x, t: x, DiffusionConfig(process="blur"))
    for call in EDITS.values():
        with pytest.raises(UserError, match="--process=blur"):
            call(net, pictures(1, 1, 4))


# ---- inversion ------------------------------------------------------------------------------------------------------


def test_inversion_is_that_of_diffusers():
    schedulers = pytest.importorskip("diffusers.schedulers")
    vp = process(100)
    net = Exact(lambda x, t: torch.tanh(x + t.to(x).view(-1, 1, 1, 1) / 100), vp.config)
    made = schedulers.DDIMInverseScheduler(num_train_timesteps=100, clip_sample=False, timestep_spacing="leading")
    made.alphas_cumprod = vp.alphas_bar
    made.set_timesteps(10)
    images = pictures(2, 1, 4)
    x = to_model_range(images).double()
    for t in made.timesteps:
        x = made.step(net(x, t.expand(2)), t, x).prev_sample
    got = ann2snn.invert(net, images, 10, skip="ddpm_torch_linear")
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


def test_iterations_end_at_the_noise_that_the_images_were_made_from():
    net, x_T = gaussian(0.3), normal(2, 1, 4, 4) * 0.5
    vp = VP(net.diffusion)
    made = sample_ddim(net, vp, x_T, noise=None, steps=10, clip=False)
    back = ann2snn.invert(Exact(net.predict, net.diffusion), to_uint8(made), 10, iterations=60)
    gain = float((made / x_T).mean())
    assert float((back - x_T).abs().max()) * gain < 1.01 / 255  # half a step of 8 bits, 1/255, and no more


def test_the_round_trip_s_error_falls_with_the_steps_and_vanishes_with_iterations():
    net, images = gaussian(0.3, 1000), to_uint8(normal(64, 1, 4, 4) * 0.3)
    errors = [ann2snn.round_trip(net, images, steps).rmse for steps in (10, 20, 40)]
    assert errors[0] > 1.6 * errors[1] > 1.6**2 * errors[2] > 0
    exact = ann2snn.round_trip(net, images, 10, iterations=60)
    assert exact.rmse == 0 and exact.psnr == float("inf")
    assert_equal(exact.images, images)
    assert_equal(ann2snn.sample(net, 64, steps=10, clip=False, x_T=exact.noise, progress=False), images)


# ---- RePaint --------------------------------------------------------------------------------------------------------


def test_known_pixels_stay_and_the_others_follow_the_seed(ann):
    images, mask = pictures(2), left_half()
    first, second = (ann2snn.inpaint(ann, images, mask, 5, resamples=2, seed=seed) for seed in (0, 1))
    for made in (first, second):
        assert_equal(made[..., ~mask], images[..., ~mask])
    assert not torch.equal(first, second)


def test_a_step_is_that_of_diffusers():
    schedulers = pytest.importorskip("diffusers.schedulers")
    vp = process(100)
    x, image, eps, z = (normal(2, 1, 4, 4, seed=seed) for seed in range(4))
    made = left_half(4)
    theirs = schedulers.RePaintScheduler(num_train_timesteps=100, eta=1.0, clip_sample=False)
    theirs.alphas_cumprod, theirs.betas = vp.alphas_bar, vp.betas
    theirs.set_timesteps(10, jump_length=1, jump_n_sample=1)
    generator = torch.Generator().manual_seed(3)
    expected = theirs.step(eps, 60, x, image, (~made).double(), generator).prev_sample
    predicted = (x - (1 - vp.alphas_bar[60]) ** 0.5 * eps) / vp.alphas_bar[60] ** 0.5
    got = inpainting.one_step(vp, x, predicted, image, made, (60, 50), lambda: z)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    theirs.set_timesteps(100, jump_length=1, jump_n_sample=1)
    again = theirs.undo_step(x, 60, torch.Generator().manual_seed(3))
    torch.testing.assert_close(inpainting.climb(vp, x, (60, 59), z), again, rtol=1e-6, atol=1e-6)


def test_what_is_made_anew_fits_what_is_known():
    # All pixels of an image are one number; a network that knows that predicts their mean in all of them.
    vp = process(100)

    def net(x, t):
        alpha = vp.alpha_bar_at(t).view(-1, 1, 1, 1)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)  # of 16 pixels: signal √ᾱ, noise variance (1−ᾱ)/16, prior 0.25
        x_0 = alpha.sqrt() * 0.25 / (alpha * 0.25 + (1 - alpha) / 16) * mean
        return (x - alpha.sqrt() * x_0) / (1 - alpha).sqrt()

    images = torch.full((16, 1, 4, 4), 200, dtype=torch.uint8)
    mask = left_half(4)
    errors = {}
    for resamples in (1, 10):
        made = ann2snn.inpaint(Exact(net, vp.config), images, mask, 25, resamples=resamples)
        errors[resamples] = float((made[..., mask].float() - 200).abs().mean())
    assert errors[10] < 20 and errors[10] < errors[1] / 2


def test_masks_that_do_not_fit_are_refused(ann):
    for mask in (left_half(4), left_half().float(), None):
        with pytest.raises(UserError, match="mask: expected a bool tensor"):
            ann2snn.inpaint(ann, pictures(1), mask, 4)
    with pytest.raises(UserError, match="resamples=0"):
        ann2snn.inpaint(ann, pictures(1), left_half(), 4, resamples=0)


@pytest.mark.parametrize("name", ["eta", "order", "sampler", "seed"])
@pytest.mark.parametrize("function", ["inpaint", "invert", "round_trip"])
def test_settings_that_would_be_passed_over_are_refused(ann, function, name):
    if (function, name) == ("inpaint", "seed"):
        name = "grid_power"
    mask = [left_half()] if function == "inpaint" else []
    with pytest.raises(UserError, match=f"^{name}: in(paint|vert) has no such setting; it takes .*guidance"):
        getattr(ann2snn, function)(ann, pictures(1), *mask, steps=2, **{name: 1})


def test_interpolation_has_two_seeds_and_no_third(ann):
    with pytest.raises(UserError, match="^seed=3: interpolate has two, seed_a and seed_b"):
        ann2snn.interpolate(ann, 1, 2, 3, steps=2, seed=3)
