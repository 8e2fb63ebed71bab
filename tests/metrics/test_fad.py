"""The Frechet autoencoder distance: published numbers with the published files, and what holds of any encoder."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ann2snn.data.idx import read_idx
from ann2snn.errors import UserError
from ann2snn.metrics.fad import BATCH, FadExtractor, FadMetric, Rebatcher, gather, read_fad_stats
from ann2snn.metrics.fad_encoder import AutoEncoder, load_autoencoder
from ann2snn.metrics.frechet import frechet_distance
from ann2snn.metrics.metric import Reference, Setting
from ann2snn.metrics.stats_file import write_stats


def fad(batches, extractor, stats, batch=BATCH):
    """(distance to `stats`, number of images)."""
    mu, sigma, count = gather(batches, extractor, batch).compute()
    return frechet_distance(mu, sigma, stats.mu, stats.sigma), count


@pytest.fixture(scope="module")
def folder():
    if "ANN2SNN_DATA" not in os.environ:
        pytest.skip("ANN2SNN_DATA is not set: no published encoder, statistics and test images")
    return Path(os.environ["ANN2SNN_DATA"])


@pytest.fixture(scope="module")
def published(folder):
    """(encoder, file of statistics) for Fashion-MNIST."""
    net = load_autoencoder(folder / "fad/stat_checkpoints/fashion_64.pth")
    return net, folder / "fad/stats/fashion_test_64.npz"


@pytest.fixture(scope="module")
def original(folder):
    """The 10,000 test images, uint8 [N, 1, 28, 28]."""
    return read_idx(folder / "fashion-mnist/t10k-images-idx3-ubyte.gz")[:, None]


def resized(images, filter):
    pictures = [np.asarray(Image.fromarray(x[0].numpy()).resize((32, 32), filter)) for x in images]
    return torch.from_numpy(np.stack(pictures))[:, None]


@pytest.fixture(scope="module")
def scaled(original):
    return resized(original, Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def published_fad(published):
    extractor = FadExtractor(published[0], "published")
    stats = read_fad_stats(published[1], extractor)
    return lambda images, batch=BATCH: fad([images], extractor, stats, batch)[0]


def noise(images):
    return torch.randint(256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_published_recipe_gives_zero_on_the_test_set(original, published_fad):
    assert published_fad(original) < 1e-6


def shuffled(images, seed=0):
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize(
    ("case", "batch", "low", "high"),
    [
        pytest.param("as they are", 250, 0.0016, 0.0018, marks=pytest.mark.slow),
        pytest.param("as they are", 64, 0.0229, 0.0239, marks=pytest.mark.slow),
        pytest.param("shuffled", 250, 0.002, 0.005, marks=pytest.mark.slow),
        ("flipped", 250, 73.5, 75.5),
        ("first 1000", 250, 2.64, 2.94),
        pytest.param("noise", 250, 215.0, 223.0, marks=pytest.mark.slow),
        pytest.param("black", 250, 690.0, 697.0, marks=pytest.mark.slow),
        pytest.param("nearest", 256, 4.55, 4.59, marks=pytest.mark.slow),
        pytest.param("bicubic", 256, 0.400, 0.410, marks=pytest.mark.slow),
        pytest.param("padded", 256, 93.5, 95.5, marks=pytest.mark.slow),
    ],
)
def test_published_mode_reproduces_the_verification_table(case, batch, low, high, original, scaled, published_fad):
    images = {
        "as they are": lambda: scaled,
        "shuffled": lambda: shuffled(scaled),
        "flipped": lambda: shuffled(scaled.flip(-1)),
        "first 1000": lambda: shuffled(scaled[:1000]),
        "noise": lambda: noise(scaled),
        "black": lambda: torch.zeros_like(scaled),
        "nearest": lambda: resized(original, Image.Resampling.NEAREST),
        "bicubic": lambda: resized(original, Image.Resampling.BICUBIC),
        "padded": lambda: torch.nn.functional.pad(original, (2, 2, 2, 2)),
    }[case]()
    assert low < published_fad(images, batch) < high


def test_golden_latent_vectors_in_both_modes(published, scaled):
    expected = {
        "eval": [-1.28580, -2.32494, 0.02670, -1.53231, 0.31738, -0.06889, -0.70172, 1.27017],
        "published": [-1.42749, -2.26549, 0.08514, -1.50790, 0.26230, -0.05860, -0.67463, 1.31289],
    }
    for mode, values in expected.items():
        first = FadExtractor(published[0], mode)(scaled[:256]).features[0, :8]
        torch.testing.assert_close(first, torch.tensor(values), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_decoder_has_the_published_reconstruction_error(published, scaled):
    x = scaled[:1000].float() / 127.5 - 1
    assert float(((published[0](x) - x) ** 2).mean()) == pytest.approx(0.008625, abs=2e-6)


def test_eval_mode_has_the_distances_of_the_table(published, scaled, tmp_path):
    """0.4269 to the published statistics, which only here are compared; 88.9 for flipped images to its own."""
    net, path = published
    extractor = FadExtractor(net, "eval")
    shipped = read_fad_stats(path, FadExtractor(net, "published"))
    mu, sigma, count = gather([scaled], extractor).compute()
    assert frechet_distance(mu, sigma, shipped.mu, shipped.sigma) == pytest.approx(0.4269, abs=1e-3)
    write_stats(tmp_path / "own.npz", mu, sigma, count, extractor.name)
    own = read_fad_stats(tmp_path / "own.npz", extractor)
    assert fad([scaled.flip(-1)], extractor, own)[0] == pytest.approx(88.9, abs=0.5)
    assert fad([scaled[:1000]], extractor, own)[0] == pytest.approx(2.888, abs=0.005)
    with pytest.raises(UserError, match="made in mode published"):
        read_fad_stats(path, extractor)


def test_every_published_file_is_read(folder):
    net = load_autoencoder(folder / "fad/stat_checkpoints/mnist_64.pth")
    stats = read_fad_stats(folder / "fad/stats/mnist_test_64.npz", FadExtractor(net, "published"))
    assert np.trace(stats.sigma) == pytest.approx(500.1091, abs=1e-4)
    assert np.linalg.norm(stats.mu) == pytest.approx(6.6170, abs=1e-4)
    with pytest.raises(UserError, match=r"mu \[128\] is not the \[64\]"):
        read_fad_stats(folder / "fad/stats/mnist_test_128.npz", FadExtractor(net, "published"))


# Without third-party files.


@pytest.fixture(scope="module")
def random_net():
    """A small latent, busy running statistics."""
    torch.manual_seed(0)
    net = AutoEncoder(1, 8)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(256, (40, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def own_encoding(net, images):
    """By the modules' own forward, in whatever mode they are in."""
    return net.latent_layer(net.encoder(images.float() / 127.5 - 1).flatten(1))


def test_modes_are_the_modules_training_and_evaluation_mode(random_net, pictures):
    state = {name: value.clone() for name, value in random_net.state_dict().items()}
    found = {mode: FadExtractor(random_net, mode)(pictures).features for mode in ("eval", "published")}
    assert all(torch.equal(value, state[name]) for name, value in random_net.state_dict().items())
    torch.testing.assert_close(found["eval"], own_encoding(random_net, pictures))
    copy = AutoEncoder(1, 8)
    copy.load_state_dict(state)
    torch.testing.assert_close(found["published"], own_encoding(copy.train(), pictures).detach())
    assert (found["eval"] - found["published"]).abs().max() > 0.1


def test_only_in_published_mode_the_company_in_a_batch_matters(random_net, pictures):
    def alone(mode):
        extractor = FadExtractor(random_net, mode)
        whole, part = extractor(pictures).features[:10], extractor(pictures[:10]).features
        return float((whole - part).abs().max())

    assert alone("eval") < 1e-5 and alone("published") > 0.01


@pytest.mark.parametrize("mode", ["published", "eval"])
def test_the_way_images_arrive_does_not_matter(random_net, pictures, mode):
    extractor = FadExtractor(random_net, mode)
    [whole, ones, odd] = [gather(pictures.split(n), extractor, batch=16).compute() for n in (40, 1, 7)]
    assert all(np.array_equal(a, b) for other in (ones, odd) for a, b in zip(whole[:2], other[:2], strict=True))


def test_rebatching_keeps_order_and_size():
    for sizes in ([5, 0, 9, 1], [15], [1] * 15, []):
        parts = torch.arange(sum(sizes)).split(sizes) if sizes else []
        batches = Rebatcher(4)
        found = [*(batch for part in parts for batch in batches.add(part)), *batches.rest()]
        assert [len(x) for x in found] == ([4, 4, 4, 3] if sizes else [])
        assert not sizes or torch.equal(torch.cat(found), torch.arange(15))


@pytest.fixture
def written(random_net, pictures, tmp_path):
    """mode → file of statistics made in it."""
    paths = {}
    for mode in ("published", "eval"):
        extractor, paths[mode] = FadExtractor(random_net, mode), tmp_path / f"{mode}.npz"
        write_stats(paths[mode], *gather([pictures], extractor).compute(), extractor.name)
    return paths


def test_modes_are_never_mixed(random_net, pictures, written):
    for mode, other in (("published", "eval"), ("eval", "published")):
        extractor = FadExtractor(random_net, mode)
        stats = read_fad_stats(written[mode], extractor)
        assert fad([pictures], extractor, stats) == (pytest.approx(0, abs=1e-6), 40)
        with pytest.raises(UserError, match=f"made in mode {other}.*--fad_mode={other}"):
            read_fad_stats(written[other], extractor)
        with pytest.raises(UserError, match=f"{other} mode"):
            FadMetric(Setting(autoencoder=Reference(FadExtractor(random_net, other), stats, "a.npz")))


def test_statistics_of_another_encoder_are_refused(written):
    torch.manual_seed(5)
    for mode in ("published", "eval"):
        with pytest.raises(UserError, match="is of 'fad-autoencoder-8@32px-"):
            read_fad_stats(written[mode], FadExtractor(AutoEncoder(1, 8), mode))


def test_a_file_without_a_name_is_one_of_published_mode(random_net, tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(8, np.float32), sigma=np.eye(8))
    assert read_fad_stats(tmp_path / "a.npz", FadExtractor(random_net, "published")).count is None
    with pytest.raises(UserError, match="made in mode published"):
        read_fad_stats(tmp_path / "a.npz", FadExtractor(random_net, "eval"))


def test_wrong_images_are_refused(random_net, pictures):
    extractor = FadExtractor(random_net, "eval")
    for images, told in (
        (pictures.expand(-1, 3, -1, -1), "takes 1 image channels, the images have 3"),
        (pictures.float(), "expected uint8"),
        (pictures[0], "expected uint8"),
    ):
        with pytest.raises(UserError, match=told):
            extractor(images)
    with pytest.raises(UserError, match="at least 2 images"):
        gather([pictures[:1]], extractor).compute()
    with pytest.raises(UserError, match="--fad_mode=train is unknown"):
        FadExtractor(random_net, "train")


def test_colour_images_of_any_size_are_scaled_as_pillow_does():
    torch.manual_seed(2)
    extractor = FadExtractor(AutoEncoder(3, 8), "published")
    images = torch.randint(256, (6, 3, 28, 28), dtype=torch.uint8)
    pillow = [np.asarray(Image.fromarray(x.permute(1, 2, 0).numpy()).resize((32, 32), 2)).copy() for x in images]
    scaled = torch.stack([torch.from_numpy(x).permute(2, 0, 1) for x in pillow])
    assert torch.equal(extractor(images).features, extractor(scaled).features)
