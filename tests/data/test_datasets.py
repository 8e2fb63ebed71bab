"""What each data set type loads, and what it refuses."""

import gzip
import os
import tarfile
import types
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ann2snn.data import datasets, decode, load_dataset
from ann2snn.data.idx import read_idx, write_idx
from ann2snn.errors import UserError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def picture(path: Path, height: int = 8, width: int = 8, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Write a picture of noise to `path` and return it as uint8 [C, H, W]."""
    pixels = noise(channels, height, width, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    v2.functional.to_pil_image(pixels).save(path)
    return pixels


@pytest.fixture(params=[True, False], ids=["in memory", "file by file"])
def budget(request, monkeypatch):
    """Run a test with the images held in memory, and with each read when it is asked for."""
    if not request.param:
        monkeypatch.setattr(datasets, "MEMORY_BUDGET", 0)
    return request.param


class TestShipped:
    def test_splits_divide_the_ten_thousand(self):
        train = load_dataset("fashion_mnist_10k", "", 28)
        test = load_dataset("fashion_mnist_10k", "", 28, train=False)
        original = read_idx(datasets.SHIPPED / "images-idx3-ubyte.gz")
        assert (len(train), len(test), train.split, test.split) == (8000, 2000, "train", "test")
        assert torch.equal(torch.cat([train.images, test.images])[:, 0], original)
        assert (train.channels, train.img_size, train.name, train.flip) == (1, (28, 28), "fashion_mnist_10k", False)

    def test_package_stays_small_and_complete(self):
        assert sum(file.stat().st_size for file in datasets.SHIPPED.iterdir()) < 5_000_000
        labels = read_idx(datasets.SHIPPED / "labels-idx1-ubyte.gz")
        assert labels.shape == (10_000,)
        assert labels.unique().tolist() == list(range(10))
        assert "arXiv:1708.07747" in (datasets.SHIPPED / "README.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize("size", [16, 32])
    def test_resize_is_pillows_and_close_to_torchvisions(self, size):
        test = load_dataset("fashion_mnist_10k", "", size, train=False)
        original = read_idx(datasets.SHIPPED / "images-idx3-ubyte.gz")[8000:]
        ours = test.images[:50]
        for image, source in zip(ours, original, strict=False):
            pillow = Image.fromarray(source.numpy()).resize((size, size), Image.Resampling.BILINEAR)
            assert torch.equal(image, v2.functional.pil_to_tensor(pillow))
        theirs = v2.functional.resize(original[:50, None].float(), [size, size], antialias=True)
        assert (ours - theirs).abs().max() <= 1

    def test_items_are_rows_of_images_and_end(self, budget, monkeypatch):
        dataset = load_dataset("fashion_mnist_10k", "", 20, train=False)
        assert (dataset.images is not None) == budget
        assert dataset[1999].shape == (1, 20, 20)
        assert dataset[1999].dtype == torch.uint8
        for index in (-1, 2000):
            with pytest.raises(IndexError):
                dataset[index]


class TestTorchvision:
    @pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
    def test_mnist_family_is_read_from_its_own_place(self, tmp_path, name, kind):
        raw = tmp_path / kind / "raw"
        raw.mkdir(parents=True)
        images = {"train": noise(7, 28, 28), "t10k": noise(4, 28, 28, seed=1)}
        for part, array in images.items():
            for what, content in {
                "images-idx3": array,
                "labels-idx1": torch.zeros(len(array), dtype=torch.uint8),
            }.items():
                write_idx(content, tmp_path / "x.gz")
                (raw / f"{part}-{what}-ubyte").write_bytes(gzip.decompress((tmp_path / "x.gz").read_bytes()))
        for train, part in ((True, "train"), (False, "t10k")):
            dataset = load_dataset(name, tmp_path, 28, train=train)
            assert torch.equal(dataset.images[:, 0], images[part])
            assert (dataset.channels, dataset.flip, dataset.name) == (1, False, name)

    @pytest.mark.parametrize(
        ("name", "module", "place"),
        [
            ("cifar10", "cifar", "cifar-10-batches-py"),
            ("mnist", "mnist", "MNIST/raw"),
            ("fashion_mnist", "mnist", "raw"),
        ],
    )
    def test_offline_says_where_to_put_the_files(self, tmp_path, monkeypatch, name, module, place):
        def offline(*_args, **_kwargs):
            raise URLError("no network")

        monkeypatch.setattr(getattr(torchvision.datasets, module), "download_and_extract_archive", offline)
        with pytest.raises(UserError, match=place) as caught:
            load_dataset(name, tmp_path, 32)
        assert "\n" not in str(caught.value)

    def test_cifar10_is_colour_channel_first(self, monkeypatch):
        data = noise(6, 32, 32, 3).numpy()
        source = types.SimpleNamespace(data=data, targets=[3, 0, 1, 1, 0, 3], classes=["a", "b", "c", "d"])
        monkeypatch.setattr(datasets.tv, "CIFAR10", lambda *_args, **_kwargs: source)
        dataset = load_dataset("cifar10", "anywhere", 32)
        assert torch.equal(dataset.images, torch.from_numpy(data).permute(0, 3, 1, 2))
        assert (dataset.channels, dataset.flip, dataset.split) == (3, True, "train")
        assert dataset.labels.tolist() == source.targets and list(dataset.classes) == source.classes

    def test_celeba_is_cropped_to_140_then_scaled(self, tmp_path, monkeypatch):
        pixels = picture(tmp_path / "celeba/img_align_celeba/000001.png", 218, 178)
        fake = types.SimpleNamespace(base_folder="celeba", filename=["000001.png"], attr=None, attr_names=[])
        monkeypatch.setattr(datasets.tv, "CelebA", lambda *_args, **_kwargs: fake)
        expected = v2.Compose([v2.ToPILImage(), v2.CenterCrop(140), v2.Resize(64), v2.PILToTensor()])(pixels)
        dataset = load_dataset("celeba", tmp_path, 64)
        assert torch.equal(dataset[0], expected)
        with pytest.raises(UserError, match="celeba has attributes; choose those"):
            dataset.of_class(0)


class TestFolder:
    def test_class_folders_come_in_imagefolders_order(self, tmp_path, budget):
        for seed, name in enumerate(["b/2.png", "b/1.png", "a/9.png", "a/10.PNG", "b-c/3.bmp"]):
            picture(tmp_path / name, seed=seed)
        dataset = load_dataset("folder", tmp_path, 8)
        theirs = [v2.functional.pil_to_tensor(image) for image, _ in ImageFolder(tmp_path)]
        assert torch.equal(torch.stack([dataset[i] for i in range(len(dataset))]), torch.stack(theirs))
        folder = ImageFolder(tmp_path)
        assert (dataset.labels.tolist(), list(dataset.classes)) == (folder.targets, folder.classes)
        assert (dataset.images is not None) == budget
        assert (dataset.channels, dataset.flip, dataset.split, len(dataset)) == (3, True, "all", 5)

    def test_flat_and_nested_files_are_found_and_others_ignored(self, tmp_path):
        for name in ["1.png", "deep/er/2.jpg", ".hidden/3.png", "._4.png"]:
            picture(tmp_path / name)
        (tmp_path / "labels.txt").write_text("no image")
        assert decode.list_images(tmp_path) == [tmp_path / "1.png", tmp_path / "deep/er/2.jpg"]

    def test_links_to_folders_are_followed_once(self, tmp_path):
        picture(tmp_path / "elsewhere/1.png")
        (tmp_path / "data").mkdir()
        (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "data/loop").symlink_to(tmp_path / "data")
        assert decode.list_images(tmp_path / "data") == [tmp_path / "data/link/1.png"]

    def test_train_and_test_subfolders_are_the_splits(self, tmp_path):
        pixels = {
            name: picture(tmp_path / name / "class/1.png", seed=seed) for seed, name in enumerate(["train", "test"])
        }
        for train, name in ((True, "train"), (False, "test")):
            dataset = load_dataset("folder", tmp_path, 8, train=train)
            assert dataset.split == name
            assert torch.equal(dataset.images, pixels[name][None])

    def test_without_splits_everything_serves_both(self, tmp_path):
        picture(tmp_path / "train/1.png")
        picture(tmp_path / "more/2.png")
        for train in (True, False):
            dataset = load_dataset("folder", tmp_path, 8, train=train)
            assert (dataset.split, len(dataset)) == ("all", 2)

    def test_grey_and_colour_convert_to_what_is_asked(self, tmp_path):
        grey = picture(tmp_path / "1.png", channels=1)
        colour = picture(tmp_path / "2.png")
        as_colour, as_grey = load_dataset("folder", tmp_path, 8), load_dataset("folder", tmp_path, 8, channels=1)
        assert torch.equal(as_colour.images, torch.stack([grey.expand(3, 8, 8), colour]))
        assert (as_grey.channels, as_grey.images.shape[1]) == (1, 1)
        assert torch.equal(as_grey[0], grey)
        luma = v2.functional.pil_to_tensor(v2.functional.to_pil_image(colour).convert("L"))
        assert torch.equal(as_grey[1], luma)

    @pytest.mark.parametrize(("height", "width"), [(20, 31), (30, 21), (16, 16), (5, 9)])
    def test_the_centre_square_is_scaled(self, tmp_path, height, width):
        pixels = picture(tmp_path / "1.png", height, width)
        side = min(height, width)
        expected = v2.Compose([v2.ToPILImage(), v2.CenterCrop(side), v2.Resize(16), v2.PILToTensor()])(pixels)
        assert torch.equal(load_dataset("folder", tmp_path, 16)[0], expected)

    def test_real_cifar10_jpegs(self, tmp_path):
        if "ANN2SNN_DATA" not in os.environ:
            pytest.skip("ANN2SNN_DATA is not set: no CIFAR-10 archive")
        with tarfile.open(Path(os.environ["ANN2SNN_DATA"], "cifar10-jpeg.tar.xz"), "r|xz") as archive:
            wanted = 200
            for member in archive:
                if member.isfile():
                    archive.extract(member, tmp_path, filter="data")
                    wanted -= 1
                if wanted == 0:
                    break
        dataset = load_dataset("folder", tmp_path, 32)
        assert dataset.images.shape == (200, 3, 32, 32)
        assert dataset.images.float().std() > 30  # pictures, not a flat field


class TestRefusals:
    @pytest.mark.parametrize("content", [b"", b"not an image", "cut"])
    def test_a_broken_file_is_named_before_training(self, tmp_path, budget, content):
        picture(tmp_path / "good.png")
        if content == "cut":
            content = (tmp_path / "good.png").read_bytes()[:-40]
        (tmp_path / "rotten.png").write_bytes(content)
        with pytest.raises(UserError, match=r"rotten\.png") as caught:
            load_dataset("folder", tmp_path, 8)
        assert "\n" not in str(caught.value)

    def test_a_huge_image_is_refused_from_its_header(self, tmp_path, budget, monkeypatch):
        monkeypatch.setattr(decode, "MAX_PIXELS", 63)
        picture(tmp_path / "huge.png")
        with pytest.raises(UserError, match=r"huge\.png has 8x8"):
            load_dataset("folder", tmp_path, 8)

    def test_a_decompression_bomb_is_refused(self, tmp_path):
        header = b"P5 60000 60000 255\n"  # a PGM announcing 3.6 gigabytes
        (tmp_path / "bomb.pgm").write_bytes(header + bytes(100))
        with pytest.raises(UserError, match=r"bomb\.pgm"):
            load_dataset("folder", tmp_path, 8)

    def test_deep_images_are_refused_not_clipped(self, tmp_path):
        Image.new("I;16", (8, 8), 40000).save(tmp_path / "deep.png")
        with pytest.raises(UserError, match=r"deep\.png has more than 8 bits"):
            load_dataset("folder", tmp_path, 8)

    def test_empty_or_missing_folders(self, tmp_path):
        with pytest.raises(UserError, match="no image"):
            load_dataset("folder", tmp_path, 8)
        with pytest.raises(UserError, match="not a folder"):
            load_dataset("folder", tmp_path / "absent", 8)

    def test_impossible_requests(self, tmp_path):
        picture(tmp_path / "1.png")
        with pytest.raises(UserError, match="choose one of fashion_mnist_10k"):
            load_dataset("imagenet", tmp_path, 8)
        for size in (0, -1, 10**6):
            with pytest.raises(UserError, match="img_size"):
                load_dataset("folder", tmp_path, size)
        with pytest.raises(UserError, match="channels 2"):
            load_dataset("folder", tmp_path, 8, channels=2)
        with pytest.raises(UserError, match="1 channels, not 3"):
            load_dataset("fashion_mnist_10k", "", 28, channels=3)
