"""Training images that are kept on the device give the batches that the loader gives, bit for bit."""

import itertools

import pytest
import torch

from ann2snn.config import ImageSize
from ann2snn.data import ImageDataset, ImageSource, Share, batches, datasets
from ann2snn.errors import UserError
from ann2snn.stages.loading import home_of

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def pictures(count: int = 11, broken: int | None = None) -> ImageDataset:
    """Random colour pictures, flipped while training."""
    images = torch.randint(256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def read(index: int) -> torch.Tensor:
        if index == broken:
            raise UserError(f"cannot read image {index}.png: damaged")
        return images[index]

    return ImageDataset(ImageSource("pictures", "all", read, count, 3, ImageSize(4, 4), flip=True))


def take(dataset: ImageDataset, **options) -> torch.Tensor:
    return torch.stack(list(itertools.islice(batches(dataset, 4, seed=7, **options), 9)))


@pytest.fixture(params=["in memory", "by file"])
def dataset(request, monkeypatch):
    """By file, a batch comes from a DataLoader where it is not resident: another implementation."""
    if request.param == "by file":
        monkeypatch.setattr(datasets, "MEMORY_BUDGET", 0)
    found = pictures()
    assert (found.images is None) == (request.param == "by file")
    return found


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2)])
def test_batches_are_the_loaders(dataset, flip, rank, world_size):
    options = {"flip": flip, "share": Share(rank, world_size), "start_step": 5}
    assert torch.equal(take(dataset, resident=CPU, **options), take(dataset, **options))


def test_two_ranks_together_see_what_one_sees(dataset):
    parts = [take(dataset, resident=CPU, share=Share(rank, 2)) for rank in range(2)]
    alone = torch.stack(list(itertools.islice(batches(dataset, 8, seed=7), 9)))
    assert torch.equal(torch.cat(parts, dim=1), alone)


def test_batches_are_made_on_the_device_itself():
    """The meta device computes shapes alone, and refuses to be mixed with the CPU."""
    batch = next(batches(pictures(), 4, seed=0, resident=torch.device("meta")))
    assert (batch.device.type, batch.shape, batch.dtype) == ("meta", (4, 3, 4, 4), torch.uint8)


def test_a_batch_does_not_share_the_images_memory(dataset):
    images = dataset.all_images().clone()
    stream = batches(dataset, 4, seed=7, resident=CPU)
    for _ in range(4):
        next(stream).zero_()
    assert torch.equal(dataset.all_images(), images)


def test_a_damaged_image_is_named_before_training_starts(monkeypatch):
    monkeypatch.setattr(datasets, "MEMORY_BUDGET", 0)
    with pytest.raises(UserError, match=r"image 3\.png"):
        batches(pictures(broken=3), 4, seed=7, resident=CPU)


def test_the_choice_is_a_gpu_with_four_times_the_room(monkeypatch):
    data = pictures()
    size = data.images.nbytes
    for free, expected in ((4 * size, None), (4 * size + 1, GPU)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * free))
        assert home_of(data, "auto", GPU) == expected
        assert home_of(data, "on", GPU) == GPU and home_of(data, "off", GPU) is None
    assert home_of(data, "auto", CPU) is None and home_of(data, "on", CPU) == CPU
    monkeypatch.setattr(datasets, "MEMORY_BUDGET", 0)
    assert home_of(pictures(), "auto", GPU) is None  # nobody asked for hours of decoding
