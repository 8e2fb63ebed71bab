"""Batches are a function of (seed, step), whatever the resume point, the ranks or the workers."""

import itertools
import os
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ann2snn.config import ImageSize
from ann2snn.data import ImageDataset, ImageSource, Share, batches, datasets, to_model_range, to_uint8
from ann2snn.errors import UserError


class Numbered:
    """Reads image i as [1, 1, 2] with the values (i, 255): tells both which image it is and whether it is mirrored."""

    def __init__(self, broken: int | None = None, deadly: int | None = None):
        self.broken, self.deadly = broken, deadly

    def __call__(self, index: int) -> torch.Tensor:
        if index == self.broken:
            raise UserError(f"cannot read image {index}.png: damaged")
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor([[[index, 255], [index, 255]]], dtype=torch.uint8)


def numbered(count: int, flip: bool = True, **read) -> ImageDataset:
    return ImageDataset(ImageSource("numbered", "all", Numbered(**read), count, 1, ImageSize(2, 2), flip))


@pytest.fixture
def lazy(monkeypatch):
    """Data sets made in the test read image by image."""
    monkeypatch.setattr(datasets, "MEMORY_BUDGET", 0)


def take(count: int, *args, **kwargs) -> torch.Tensor:
    return torch.stack(list(itertools.islice(batches(*args, **kwargs), count)))


def which(images: torch.Tensor) -> list[int]:
    return images[..., 0, 0, :].amin(-1).flatten().tolist()


sizes = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(count=sizes, batch_size=sizes, seed=st.integers(0, 2**63), start=st.integers(0, 20))
def test_resuming_gives_the_tail_of_the_uninterrupted_stream(count, batch_size, seed, start):
    dataset = numbered(count)
    whole = take(start + 3, dataset, batch_size, seed=seed)
    assert torch.equal(take(3, dataset, batch_size, seed=seed, start_step=start), whole[start:])


@settings(max_examples=60, deadline=None)
@given(count=sizes, batch_size=sizes, seed=st.integers(0, 1000))
def test_every_epoch_visits_each_image_once(count, batch_size, seed):
    steps = -(-3 * count // batch_size)
    seen = which(take(steps, numbered(count), batch_size, seed=seed))
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(max_examples=60, deadline=None)
@given(count=sizes, batch_size=st.integers(1, 10), world_size=st.integers(1, 4), start=st.integers(0, 9))
def test_ranks_together_see_what_one_process_sees(count, batch_size, world_size, start):
    dataset = numbered(count)
    parts = [
        take(4, dataset, batch_size, seed=5, start_step=start, share=Share(rank, world_size))
        for rank in range(world_size)
    ]
    alone = take(4, dataset, batch_size * world_size, seed=5, start_step=start)
    assert torch.equal(torch.cat(parts, dim=1), alone)


def test_epochs_and_seeds_differ():
    first, second = take(2, numbered(50), 50, seed=0)
    assert which(first) != which(second)
    assert which(first) != which(take(1, numbered(50), 50, seed=1))
    high = take(1, numbered(50), 50, seed=2**32)  # no seed bit is lost
    assert which(first) != which(high)


def test_flips_are_fair_and_follow_the_data_set_unless_told():
    def mirrored(dataset, **kwargs):
        return (take(40, dataset, 50, seed=0, **kwargs)[..., 0] == 255).all(-1).float().mean().item()

    assert abs(mirrored(numbered(50)) - 0.5) < 0.05  # 2000 coins, sigma 0.011
    assert mirrored(numbered(50), flip=False) == 0
    assert mirrored(numbered(50, flip=False)) == 0
    assert abs(mirrored(numbered(50, flip=False), flip=True) - 0.5) < 0.05


def test_shapes_and_source_stay_as_they_are():
    dataset = numbered(5)
    before = dataset.images.clone()
    stream = batches(dataset, 3, seed=0)
    for _ in range(5):
        batch = next(stream)
        assert (batch.shape, batch.dtype) == ((3, 1, 2, 2), torch.uint8)
        batch.zero_()
    assert torch.equal(dataset.images, before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_file_by_file_gives_the_same_batches(monkeypatch, num_workers):
    held = take(6, numbered(10), 4, seed=3, start_step=2)
    monkeypatch.setattr(datasets, "MEMORY_BUDGET", 0)
    read = take(6, numbered(10), 4, seed=3, start_step=2, num_workers=num_workers)
    assert torch.equal(held, read)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_global_random_state_is_left_alone(lazy, num_workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(2, numbered(10), 4, seed=3, num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_raises_its_own_line(lazy, num_workers):
    with pytest.raises(UserError) as caught:
        take(10, numbered(10, broken=7), 4, seed=0, num_workers=num_workers)
    assert str(caught.value) == "cannot read image 7.png: damaged"


def test_a_killed_worker_raises(lazy):
    with pytest.raises(RuntimeError, match="worker"):
        take(10, numbered(10, deadly=7), 4, seed=0, num_workers=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"start_step": -1},
        {"share": Share(1)},
        {"share": Share(-1)},
        {"share": Share(0, 0)},
        {"num_workers": -1},
    ],
)
def test_arguments_out_of_range_raise_at_the_call(wrong):
    with pytest.raises(ValueError, match="out of range"):
        batches(numbered(3), **{"batch_size": 1, "seed": 0, **wrong})


def test_an_empty_data_set_raises_at_the_call():
    with pytest.raises(UserError, match="empty"):
        batches(numbered(0), 1, seed=0)


class TestRange:
    def test_all_levels_survive_the_round_trip(self):
        levels = torch.arange(256, dtype=torch.uint8)
        x = to_model_range(levels)
        assert x.dtype == torch.float32
        assert (x[0], x[-1]) == (-1, 1)
        assert torch.equal(to_uint8(x), levels)

    def test_rounds_to_the_nearest_level_and_clamps(self):
        x = torch.tensor([-7.0, -1.0, 0.9999 / 127.5 * 0.5 - 1, 1.0001 / 127.5 * 0.5 - 1, 1.0, 1.5, float("inf")])
        assert to_uint8(x).tolist() == [0, 0, 0, 1, 255, 255, 255]
        assert to_uint8(torch.tensor([1.0], dtype=torch.float16)).tolist() == [255]

    def test_nan_is_no_image(self):
        with pytest.raises(UserError, match="NaN"):
            to_uint8(torch.tensor([0.0, float("nan")]))
