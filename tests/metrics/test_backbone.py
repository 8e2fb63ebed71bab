"""Features of torchvision's and timm's classifiers, from files with random weights, against the networks themselves."""

import sys
import types

import numpy as np
import pytest
import scipy.linalg
import torch
from torchvision import models

from ann2snn.errors import UserError
from ann2snn.metrics.backbone import BackboneExtractor
from ann2snn.metrics.score import make_stats, numbered, score_numbered
from ann2snn.metrics.stats_file import ReferenceStatistics

KIND = "torchvision:mobilenet_v3_small"


def pictures(count, seed=0):
    return torch.randint(256, (count, 1, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return models.mobilenet_v3_small(weights=None).eval()


@pytest.fixture(scope="module")
def path(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "random.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def extractor(path):
    return BackboneExtractor(KIND, path)


def test_features_are_what_the_networks_classifier_reads(net, extractor):
    read = []
    net.classifier[-1].register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
    x = pictures(3).expand(-1, 3, -1, -1).float() / 255
    x = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        net((x - mean) / deviation)
    got = extractor(pictures(3))
    assert got.logits is None and got.features.shape == (3, extractor.dim) == (3, 1024)
    torch.testing.assert_close(got.features, read[0], rtol=0, atol=1e-5)


def test_the_distance_is_scipys(extractor):
    """In the span of all features, which a Frechet distance cannot tell from the whole space."""
    sets = [pictures(6, seed) // (1 + seed) for seed in (0, 1)]
    features = [extractor(images).features.double().numpy() for images in sets]
    basis = np.linalg.svd(np.concatenate(features), full_matrices=False)[2]
    (a, s), (b, t) = ((f.mean(0) @ basis.T, np.cov(f @ basis.T, rowvar=False)) for f in features)
    expected = ((a - b) ** 2).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    reference = ReferenceStatistics(*make_stats([sets[1]], extractor, progress=False).compute(), extractor.name)
    got = score_numbered(numbered([sets[0]]), extractor, reference, progress=False)
    assert got["FD_torchvision_mobilenet_v3_small"] == pytest.approx(expected, rel=1e-4) and expected > 0


def test_the_name_tells_networks_sizes_and_weights_apart(net, extractor, tmp_path):
    assert extractor.name.startswith("torchvision:mobilenet_v3_small-1024@224px-bilinear-")
    assert "224x224 (bilinear, antialiased), mean and deviation 0.485" in extractor.notes[0]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    state["features.0.0.weight"][0] += 1
    torch.save(state, tmp_path / "other.pth")
    other = BackboneExtractor(KIND, tmp_path / "other.pth")
    reference = ReferenceStatistics(np.zeros(1024), np.eye(1024), 9, other.name)
    assert other.name != extractor.name
    with pytest.raises(UserError, match="reference statistics are of"):
        score_numbered(iter(()), extractor, reference)


def test_safetensors_have_the_same_name(net, extractor, tmp_path):
    from safetensors.torch import save_file

    save_file(net.state_dict(), tmp_path / "a.safetensors")
    assert BackboneExtractor(KIND, tmp_path / "a.safetensors").name == extractor.name


class Executes:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("kind", "content", "told"),
    [
        (KIND, None, "cannot read the weights"),
        (KIND, b"nothing", "not a torch checkpoint"),
        (KIND, {"a": Executes()}, "refusing"),
        (KIND, {"a": 3}, "no state dict"),
        (KIND, {3: torch.ones(1)}, "no state dict"),
        (KIND, {"a": torch.ones(1)}, "it lacks classifier.0.bias"),
        ("torchvision:resnet18", "random", "it lacks"),
        ("torchvision:nothing", "random", "no classifier of that name"),
        ("torchvision:squeezenet1_0", "random", "no linear layer"),
        ("torchvision:", "random", "torchvision:NAME"),
        ("timm:hf-hub:a/b", "random", "timm:NAME"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(kind, content, told, path, tmp_path, capsys):
    file = path if content == "random" else tmp_path / "a.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict):
        torch.save(content, file)
    with pytest.raises(UserError, match=told) as refusal:
        BackboneExtractor(kind, file)
    assert "\n" not in str(refusal.value) and "executed" not in capsys.readouterr().out


def test_without_timm_the_message_says_how_to_get_it(path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package timm is missing: pip install timm, which ann2snn\[timm\] brings"):
        BackboneExtractor("timm:resnet18", path)


def test_timms_networks_are_made_without_a_classifier_and_seen_as_its_data_config_says(monkeypatch, tmp_path):
    """With a stand-in for the package, which is not everywhere: its interface, as of timm 1.0."""
    torch.manual_seed(0)

    def made(name, pretrained, num_classes):
        assert (name, pretrained, num_classes) == ("small", False, 0)
        net = torch.nn.Sequential()
        net.add_module("stem", torch.nn.Conv2d(3, 4, 3))
        net.add_module("pool", torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()))
        net.pretrained_cfg = {"classifier": "fc"}
        return net

    how = {"input_size": (3, 32, 32), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.25,) * 3}
    timm = types.ModuleType("timm", "stand-in")
    timm.is_model, timm.create_model = "small".__eq__, made
    timm.data = types.SimpleNamespace(resolve_model_data_config=lambda net: how)
    timm.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "timm", timm)
    state = made("small", False, 0).state_dict() | {"fc.weight": torch.ones(10, 4), "fc.bias": torch.ones(10)}
    torch.save(state, tmp_path / "a.pth")
    extractor = BackboneExtractor("timm:small", tmp_path / "a.pth")
    assert extractor.name.startswith("timm:small-4@32px-bicubic-") and extractor.distance_key == "FD_timm_small"
    black = torch.nn.functional.conv2d(torch.full((1, 3, 3, 3), -2.0), state["stem.weight"], state["stem.bias"])
    torch.testing.assert_close(extractor(torch.zeros(1, 1, 5, 5, dtype=torch.uint8)).features, black.flatten(1))
    with pytest.raises(UserError, match="timm has no network"):
        BackboneExtractor("timm:large", tmp_path / "a.pth")
