"""Diffusion in an autoencoder's latent space, from Python: its files, its images, exactness, and what it costs."""

import argparse
import json
import shutil

import pytest
import torch

import ann2snn
from ann2snn.checkpoints import checkpoint
from ann2snn.config import IMAGE_SAMPLERS, DiffusionConfig, SampleConfig
from ann2snn.data import load_dataset, to_model_range, to_uint8
from ann2snn.diffusion.process import make_process
from ann2snn.errors import UserError
from ann2snn.generate.sampling import Given, generate
from ann2snn.latent import Autoencoder, AutoencoderConfig, ConvAutoencoder, load_autoencoder, save_autoencoder
from ann2snn.stages.autoencoder import train
from tests.helpers import assert_equal

TINY = AutoencoderConfig(channels=1, image_size=8, latent_channels=2, width=8, halvings=1)
NET = {"in_channels": 2, "image_size": 4, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4, "bit": 2}


def tiny(path, seed=0):
    """A fresh autoencoder in a file, read back."""
    torch.manual_seed(seed)
    net = ConvAutoencoder(TINY)
    net.shift.fill_(0.1)
    net.scale.fill_(3.0)
    save_autoencoder(path, net)
    return load_autoencoder(path), net


def denoiser(autoencoder):
    torch.manual_seed(1)
    net = ann2snn.build_unet(diffusion=DiffusionConfig(diffusion_steps=10, **autoencoder.space), **NET).double().eval()
    for name, value in net.named_parameters():
        if name.startswith("tail.2"):  # begins near zero, and would predict next to nothing
            torch.nn.init.normal_(value, std=0.1)
    return net


def test_the_denoising_loss_is_of_latents(tmp_path):
    """Of images it had been, repeated in all of the latents' channels."""
    autoencoder, _ = tiny(tmp_path / "a.pt")
    net, images = denoiser(autoencoder), torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    with pytest.raises(UserError, match="makes latents of the autoencoder"):
        ann2snn.denoising_loss(net, images)
    net.autoencoder = autoencoder
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(args))
    loss = ann2snn.denoising_loss(net, images, seed=3)
    ((x_t, t),) = seen
    alpha_bar = make_process(net.diffusion, net.image_size).alphas_bar[t].view(-1, 1, 1, 1)
    noise = (x_t - alpha_bar.sqrt() * autoencoder.encode(images).double()) / (1 - alpha_bar).sqrt()
    assert loss == pytest.approx(float((net(x_t, t) - noise).detach().square().mean()), rel=1e-5)
    assert noise.std() == pytest.approx(1, abs=0.3)


def test_a_few_steps_come_closer_to_the_images_than_their_mean():
    data = load_dataset("fashion_mnist_10k", "", 8).part(0, 512)
    given = argparse.Namespace(steps=60, batch_size=16, lr=5e-3, kl_weight=1e-4, seed=0)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    net, _ = train(data, TINY, given, torch.device("cpu"))
    assert_equal(torch.get_rng_state(), before)
    from ann2snn.latent.files import autoencoder_of

    autoencoder, x = autoencoder_of(net), to_model_range(data.images)
    latents = autoencoder.encode(data.images)
    assert latents.shape == (512, 2, 4, 4)
    by_channel = latents.transpose(0, 1).flatten(1)
    assert by_channel.mean(1).abs().max() < 1e-5 and (by_channel.std(1) - 1).abs().max() < 1e-5
    error = (autoencoder.decode(latents) - x).square().mean()
    assert error < 0.7 * (x - x.mean(0)).square().mean()


def test_a_file_gives_back_the_same_autoencoder_and_tells_it_from_others(tmp_path):
    first, net = tiny(tmp_path / "a.pt")
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    mean, _ = net.moments(to_model_range(images))
    assert_equal(first.encode(images), (mean - 0.1) * 3.0)
    z = first.encode(images)
    assert_equal(first.decode(z), net.decoder(z / 3.0 + 0.1))
    assert first.space == {"autoencoder": first.identity, "downscale": 2, "decoded_channels": 1}
    assert tiny(tmp_path / "b.pt", seed=1)[0].identity != first.identity
    net.scale.fill_(2.0)  # another scaling is another space
    save_autoencoder(tmp_path / "c.pt", net)
    assert load_autoencoder(tmp_path / "c.pt").identity != first.identity
    with pytest.raises(UserError, match="nothing is overwritten"):
        save_autoencoder(tmp_path / "c.pt", net)


def test_an_image_is_encoded_and_decoded_alike_however_many_stand_beside_it(tmp_path):
    autoencoder, _ = tiny(tmp_path / "a.pt")
    images = torch.randint(256, (40, 1, 8, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    latents = autoencoder.encode(images)
    decoded = autoencoder.decode(latents)
    for n in (1, 3, 33):
        assert_equal(autoencoder.encode(images[:n]), latents[:n])
        assert_equal(autoencoder.decode(latents[:n]), decoded[:n])


def test_the_spiking_network_equals_the_quantized_one_in_latent_space(tmp_path):
    autoencoder, _ = tiny(tmp_path / "a.pt")
    net = denoiser(autoencoder)
    snn = ann2snn.convert(net)
    how = {"steps": 3, "progress": False, "autoencoder": autoencoder}
    images = ann2snn.sample(net, 3, **how)
    assert images.shape == (3, 1, 8, 8) and images.dtype == torch.uint8 and images.float().std() > 0
    assert_equal(ann2snn.sample(snn, 3, **how), images)
    assert_equal(ann2snn.sample(snn, 3, carry=True, **how), images)
    for x, t in ann2snn.trajectory(net, 2, steps=3):  # needs nobody who decodes
        assert x.shape == (2, 2, 4, 4)
        assert_equal(snn(x, t), net(x, t))
    net.autoencoder = autoencoder
    assert_equal(ann2snn.sample(ann2snn.convert(net), 3, steps=3, progress=False), images)  # a copy has it, too
    assert_equal(ann2snn.interpolate(net, 0, 0, 2, steps=3)[0], images[0])


@pytest.mark.parametrize("sampler", [name for name in IMAGE_SAMPLERS if name != "analytic_dpm"] + ["gddim", "euler"])
def test_latents_are_decoded_from_the_samplers_end_unclipped(tmp_path, sampler):
    autoencoder, _ = tiny(tmp_path / "a.pt")
    net, ends = denoiser(autoencoder), []
    net.autoencoder = autoencoder
    x_T = 40 * torch.randn(2, 2, 4, 4, dtype=torch.float64)

    class Watched(Autoencoder):
        def __init__(self):
            self.identity = autoencoder.identity

        def decode(self, latents):
            ends.append(latents)
            return autoencoder.decode(latents)

    made = generate(net, SampleConfig(sampler, steps=3, order=1), range(2), Given(x_T=x_T, autoencoder=Watched()))
    (end,) = ends
    assert end.abs().max() > 1.5  # beyond what images have
    assert_equal(made, to_uint8(autoencoder.decode(end))[:2])


def test_a_checkpoint_remembers_its_autoencoder(tmp_path):
    autoencoder, _ = tiny(tmp_path / "a.pt")
    other, _ = tiny(tmp_path / "b.pt", seed=1)
    net = denoiser(autoencoder).float()
    ann2snn.save(net, tmp_path / "net.pt")
    ann2snn.save(ann2snn.convert(net), tmp_path / "folder")
    for name in ("net.pt", "folder"):
        read = ann2snn.load(tmp_path / name, image_size=8)  # that of the images
        assert read.diffusion.autoencoder == autoencoder.identity
        assert ann2snn.sample(read, 1, steps=2, autoencoder=autoencoder, progress=False).shape == (1, 1, 8, 8)
        for wrong, words in (
            (None, f"makes latents of the autoencoder {autoencoder.identity}"),
            (other, "was trained"),
        ):
            with pytest.raises(UserError, match=words):
                ann2snn.sample(read, 1, steps=2, autoencoder=wrong, progress=False)
    with pytest.raises(UserError, match="image_size=4 contradicts|img_size=4 contradicts"):
        ann2snn.load(tmp_path / "net.pt", image_size=4)
    plain = ann2snn.build_unet(**NET | {"in_channels": 1})
    with pytest.raises(UserError, match="was trained on images"):
        ann2snn.sample(plain, 1, steps=2, autoencoder=other, progress=False)


def test_what_latents_are_not_for_is_refused_by_name(tmp_path):
    autoencoder, _ = tiny(tmp_path / "a.pt")
    net = denoiser(autoencoder)
    net.autoencoder = autoencoder
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    refusals = {
        "in_pipeline": lambda: ann2snn.in_pipeline(net),
        "--process=vp, not blur": lambda: DiffusionConfig(process="blur", **autoencoder.space),
        "16 hexadecimal": lambda: DiffusionConfig(autoencoder="../x"),
        "4 image channels": lambda: ann2snn.build_unet(**NET | {"in_channels": 4}),
        "multiples of 2": lambda: autoencoder.encode(torch.zeros(1, 1, 9, 8, dtype=torch.uint8)),
    }
    for words, call in refusals.items():
        with pytest.raises(UserError, match=words):
            call()
    statistics = ann2snn.noise_statistics(net, images, steps=2)  # of the images' latents
    assert statistics.shape == (10,)


def conv(side, into, out):
    """Multiply-accumulates of a padded 3x3 convolution that reads what is there, by rows and columns of its kernel."""
    return (3 * side - 2) ** 2 * into * out


def test_the_decoders_cost_is_what_a_hand_counts(tmp_path):
    autoencoder, _ = tiny(tmp_path / "a.pt")
    report = ann2snn.cost(autoencoder.decoder, torch.randn(1, 2, 4, 4))
    # To 16 channels, a residual block; 8x8 pixels: to 8 channels, a residual block, to grey.
    by_hand = conv(4, 2, 16) + conv(4, 16, 16) + conv(8, 16, 8) + conv(8, 8, 8) + conv(8, 8, 1)
    assert report.total("dense") == by_hand
    synapses = sum(layer.dense for layer in report.layers if layer.kind == "conv")
    outside = report.dense_mac - synapses
    energy = report.energies()["fp32"]["fp32"].compute
    more = sum(layer.additions + layer.updates for layer in report.layers)
    assert energy == pytest.approx(4.6 * (by_hand + outside) + 0.9 * more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An AutoencoderKL of diffusers with random weights, on disk, and itself."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(3)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    shape = {"in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
    vae = diffusers.AutoencoderKL(**blocks, **shape, latent_channels=3, scaling_factor=0.7, shift_factor=0.2).eval()
    path = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(path / "vae")
    return path / "vae", vae


@torch.no_grad()
def test_a_folder_of_diffusers_encodes_and_decodes_as_diffusers_does(folder, tmp_path):
    path, vae = folder
    autoencoder = load_autoencoder(path)
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    latents = autoencoder.encode(images)
    theirs = (vae.encode(to_model_range(images)).latent_dist.mean - 0.2) * 0.7
    assert (latents - theirs).abs().max() < 5e-6
    decoded = vae.decode(theirs / 0.7 + 0.2).sample
    assert (autoencoder.decode(theirs) - decoded).abs().max() < 5e-6 * decoded.abs().max().clamp(min=1)
    assert (autoencoder.downscale, autoencoder.latent_channels, autoencoder.channels) == (2, 3, 1)
    (tmp_path / "model_index.json").write_text("{}")  # a pipeline has it as a part
    shutil.copytree(path, tmp_path / "vae")
    assert load_autoencoder(tmp_path).identity == autoencoder.identity


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "VQModel"}, "no AutoencoderKL"),
        ({"scaling_factor": 0}, "scaling_factor=0.0: must be positive"),
        ({"scaling_factor": "nan"}, "scaling_factor"),
        ({"block_out_channels": [8, 10**9]}, "block_out_channels=1000000000: use 1 to 4096"),
        ({"block_out_channels": [16, 16]}, "unknown entry"),
        ({"norm_num_groups": 5}, "diffusers makes no autoencoder"),
        ({"in_channels": 4}, "in_channels=4: use 1 or 3"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "only DownEncoderBlock2D"),
        ({"latents_mean": [0, 0, 0]}, "latents_mean"),
    ],
)
def test_bad_folders_are_refused(folder, tmp_path, change, words):
    shutil.copytree(folder[0], tmp_path / "vae")
    config = tmp_path / "vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=words):
        load_autoencoder(tmp_path / "vae")


def test_bad_files_are_refused(folder, tmp_path):
    autoencoder, _ = tiny(tmp_path / "a.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.pt").write_bytes(b"no checkpoint")
    ann2snn.save(denoiser(autoencoder).float(), tmp_path / "net.pt")
    shutil.copytree(folder[0], tmp_path / "weightless")
    (tmp_path / "weightless/diffusion_pytorch_model.safetensors").unlink()
    payload = checkpoint.read(tmp_path / "a.pt")
    del payload["hash"]
    for name, change in {
        "wide.pt": {"config": {"autoencoder": payload["config"]["autoencoder"] | {"width": 64}}},
        "odd.pt": {"config": {"autoencoder": payload["config"]["autoencoder"] | {"halvings": 99}}},
        "nan.pt": {"ema_model": payload["ema_model"] | {"scale": torch.full((1, 2, 1, 1), torch.nan)}},
        "zero.pt": {"ema_model": payload["ema_model"] | {"scale": torch.zeros(1, 2, 1, 1)}},
    }.items():
        checkpoint.save(tmp_path / name, payload | change)
    for name, words in {
        "missing.pt": "no checkpoint at",
        "empty": "no config.json",
        "junk.pt": "refusing",
        "net.pt": "no autoencoder of this program",
        "weightless": "there is no diffusion_pytorch_model.safetensors",
        "wide.pt": "expected",
        "odd.pt": "--halvings=99",
        "nan.pt": "not finite",
        "zero.pt": "not positive",
    }.items():
        with pytest.raises(UserError, match=words):
            load_autoencoder(tmp_path / name)
    with pytest.raises(UserError, match="it is an autoencoder and no denoiser"):
        ann2snn.load(tmp_path / "a.pt")
    with pytest.raises(UserError, match="not a dict"):
        load_autoencoder({})
