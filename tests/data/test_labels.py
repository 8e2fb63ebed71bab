"""The classes of images, and of the batches made of them."""

import pytest
import torch

from ann2snn.data import Share, batches, labels_at, load_dataset
from ann2snn.errors import UserError
from tests.data.test_datasets import picture


@pytest.fixture(scope="module")
def shipped():
    return load_dataset("fashion_mnist_10k", "", 28), load_dataset("fashion_mnist_10k", "", 28, train=False)


def test_shipped_labels_belong_to_their_images(shipped):
    """Nearest class mean, learned on the train split alone; by chance one in ten is right."""
    train, test = shipped
    pixels = [part.images.flatten(1).double() for part in shipped]
    means = torch.stack([pixels[0][train.labels == label].mean(0) for label in range(10)])
    right = (torch.cdist(pixels[1], means).argmin(1) == test.labels).double().mean()
    assert right > 0.6 and test.classes[9] == "Ankle boot"
    shifted = (torch.cdist(pixels[1], means).argmin(1) == test.labels.roll(1)).double().mean()
    assert shifted < 0.2
    trousers = pixels[0][train.labels == train.classes.index("Trouser")].view(-1, 28, 28)
    assert trousers[:, 4:, 14].mean() < trousers[:, 4:, 10].mean()  # a gap between the legs


def test_parts_and_classes_keep_their_labels(shipped):
    train, _ = shipped
    part = train.part(100, 300)
    assert torch.equal(part.labels, train.labels[100:300])
    dresses = part.of_class("Dress")
    assert dresses.labels.unique().tolist() == [3] and dresses.split == "train, class 3: Dress"
    assert torch.equal(dresses.images, part.images[part.labels == 3]) and torch.equal(dresses[0], dresses.images[0])
    assert len(part.of_class(3)) == len(dresses) == int((part.labels == 3).sum())
    for wrong in (10, "Hat", "none"):
        with pytest.raises(UserError, match="--class_label"):
            part.of_class(wrong)


def test_the_fingerprint_knows_labels_where_it_is_asked_to(shipped):
    train, _ = shipped
    plain, told = train.fingerprint(), train.fingerprint(labels=True)
    assert told.startswith(plain) and told != plain
    other = train.part(0, len(train))
    other._read, other.labels = train._read, train.labels.flip(0)
    assert other.fingerprint() == plain and other.fingerprint(labels=True) != told


def test_class_folders(tmp_path):
    for split in ("train", "test"):
        for name, count in (("cat", 2), ("dog", 3)):
            for i in range(count if split == "train" else 1):
                picture(tmp_path / split / name / f"{i}.png", seed=i)
    train = load_dataset("folder", tmp_path, 8)
    assert train.classes == ("cat", "dog") and train.labels.tolist() == [0, 0, 1, 1, 1]
    (tmp_path / "test/cat/0.png").unlink()
    test = load_dataset("folder", tmp_path, 8, train=False)
    assert test.classes == ("cat", "dog") and test.labels.tolist() == [1]  # numbered as those of train
    with pytest.raises(UserError, match="no image of this class"):
        test.of_class("cat")


@pytest.mark.parametrize("paths", [["a.png", "b.png"], ["x/a.png"], ["x/a.png", "b.png"], ["x/a.png", "y/z/b.png"]])
def test_other_folders_have_no_classes(tmp_path, paths):
    for path in paths:
        picture(tmp_path / path)
    data = load_dataset("folder", tmp_path, 8)
    assert data.labels is None and data.classes == () and data.fingerprint(labels=True) == data.fingerprint()
    with pytest.raises(UserError, match="--class_cond: folder has no classes; of a folder, they are its subfolders"):
        labels_at(data, 1, 0, seed=0)


@pytest.mark.parametrize("world_size", [1, 2])
def test_labels_follow_their_batches(shipped, world_size):
    train, _ = shipped
    few = train.part(0, 21)
    for rank in range(world_size):
        place = {"seed": 3, "share": Share(rank, world_size)}
        stream = batches(few, 8, start_step=2, flip=False, **place)
        for step in range(2, 6):
            found, labels = next(stream), labels_at(few, 8, step, **place)
            for image, label in zip(found, labels, strict=True):
                [index] = (few.images == image).flatten(1).all(1).nonzero().flatten().tolist()
                assert few.labels[index] == label
