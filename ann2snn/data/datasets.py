"""The data sets that networks are trained on and compared with, as 8-bit images of one size."""

import copy
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision import datasets as tv

from ..config import DATASET_TYPES, ImageSize, check_size, class_index, require
from ..errors import UserError, is_out_of_memory
from .attributes import combinations, combined
from .decode import check_image, left_out, list_images
from .idx import read_idx
from .read import ImageArray, ImageFiles, read_all

MAX_SIZE = 4096
MEMORY_BUDGET = 2**30  # bytes of finished images to keep; larger sets are read image by image
CELEBA_CROP = 140  # the side usual in the diffusion literature: face without most of the background
SHIPPED = Path(__file__).parent / "fashion_mnist_10k"
SHIPPED_TRAIN = 8000
HELD_OUT = ("val", "valid", "validation", "eval", "dev")  # names of folders that are not to be trained on


@dataclass(frozen=True)
class ImageSource:
    """Where images come from, and what they are.

    name: the `dataset_type`. split: "train", "test", or "all" where there is no such division.
    read: i → image i of `count`, uint8 [C, H, W]. channels: 1 (grey) or 3 (RGB). img_size: (height, width).
    flip: whether mirrored images are sensible training data.
    note: what a user should know of where the images come from.
    labels: the images' classes, whole numbers [N], or None where they have none.
    classes: names of the classes, in the order of their numbers.
    """

    name: str
    split: str
    read: Callable[[int], torch.Tensor]
    count: int
    channels: int
    img_size: ImageSize
    flip: bool
    note: str = ""
    labels: torch.Tensor | None = None
    classes: Sequence[str] = ()


class ImageDataset:
    """A map-style data set of uint8 images [C, H, W], of a source whose images are all read now if memory permits.

    Attributes: `name`, `split`, `channels`, `img_size`, `flip` and `note` of its `ImageSource`, and
        images: all images, uint8 [N, C, H, W], or None where they are read one by one.
        labels: the images' classes, int64 [N], or None where they have none.
        classes: names of the classes, in the order of their numbers; empty where there are none.
    """

    def __init__(self, source: ImageSource) -> None:
        self.name, self.split, self.note = source.name, source.split, source.note
        self.channels, self.img_size, self.flip = source.channels, source.img_size, source.flip
        self.labels = None if source.labels is None else source.labels.to(torch.int64)
        self.classes = () if source.labels is None else tuple(source.classes)
        self._read, self._count = source.read, source.count
        self.images: torch.Tensor | None = None
        if self._count * self.channels * self.img_size.pixels <= MEMORY_BUDGET:
            self.images = self.all_images()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return image `index`, 0 to len - 1, as uint8 [C, H, W].

        Raises:
            IndexError: there is no such image.
            UserError: its file cannot be decoded; the message names it.
        """
        if not 0 <= index < self._count:
            raise IndexError(f"image {index} of {self._count}")
        return self._read(index) if self.images is None else self.images[index]

    def all_images(self) -> torch.Tensor:
        """uint8 [N, C, H, W]: those held, or all read now, whatever they take. Raises UserError as reading one does."""
        if self.images is not None:
            return self.images
        return read_all(self._read, self._count, (self.channels, *self.img_size))

    def fingerprint(self, labels: bool = False) -> str:
        """How many images, and a hash: of their relative names and sizes in bytes, or, without files, of all bytes.

        labels: whether the images' classes and their names take part, for what depends on them.
        Where they are kept plays no part, so data may move. An image that changes but keeps name and size goes unseen.
        """
        digest: Callable[[], str] | None = getattr(self._read, "digest", None)
        text = f"{len(self)} images" + (f" {digest()}" if digest else "")
        if labels and self.labels is not None:
            classes_text = repr((self.classes, self.labels.tolist())).encode()
            text += f" {hashlib.blake2b(classes_text, digest_size=8).hexdigest()}"
        return text

    def part(self, start: int, stop: int) -> "ImageDataset":
        """Images `start` to `stop` - 1 as a data set of their own, sharing memory. Raises ValueError out of range."""
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"images {start} to {stop} of {len(self)}")
        part = copy.copy(self)
        part._count, part._read = stop - start, lambda index: self._read(start + index)
        part.images = None if self.images is None else self.images[start:stop]
        part.labels = None if self.labels is None else self.labels[start:stop]
        return part

    def of_class(self, label: int | str) -> "ImageDataset":
        """The images of one class, named by number or name, as a data set of their own; `split` says which.

        Raises UserError where the images have no classes, for an unknown one, and for one without images.
        """
        if self.labels is None:
            raise UserError(f"--class_label={label}: {self.unlabelled}")
        index = class_index(label, len(self.classes), self.classes)
        require(index < len(self.classes), f"--class_label={label}: name a class of {self.name}")
        chosen = torch.eq(self.labels, index).nonzero().flatten()
        require(len(chosen) > 0, f"--class_label={label}: {self.name} ({self.split}) has no image of this class")
        part = copy.copy(self)
        places = chosen.tolist()
        part._count, part._read = len(places), lambda index: self._read(places[index])
        part.images = None if self.images is None else self.images[chosen]
        part.labels = self.labels[chosen]
        part.split = f"{self.split}, class {index}: {self.classes[index]}"
        return part

    def as_latents(self, latents: torch.Tensor) -> "ImageDataset":
        """The same data set with float latents [N, C', H', H'] in the images' place, which are not mirrored."""
        made = copy.copy(self)
        made.images, made.flip = latents, False
        made.channels, made.img_size = latents.shape[1], ImageSize(*latents.shape[2:])
        return made

    def check_classes(self, count: int, names: Sequence[str] = ()) -> None:
        """Raise UserError unless the images are of the classes that a network is told: `count`, called `names` if any.

        A network that is told none, with a `count` of 0, goes with all images.
        """
        if not count:
            return
        known = len(self.classes)
        require(self.labels is not None, f"--class_cond: {self.unlabelled}")
        require(known == count, f"--class_cond: {self.name} has {known} classes, the network {count}")
        for index, (ours, theirs) in enumerate(zip(self.classes, names, strict=False)):  # of none
            same = f"class {index} is {ours} in {self.name}, {theirs} for the network: give the data it was trained on"
            require(ours == theirs, f"--class_cond: {same}")

    def fingerprint_for(self, count: int, names: Sequence[str] = ()) -> str:
        """`fingerprint`, with the classes where a network is told some. Raises UserError as `check_classes`."""
        self.check_classes(count, names)
        return self.fingerprint(labels=count > 0)

    @property
    def unlabelled(self) -> str:
        """Why images have no classes, and where they would come from."""
        if self.name == "celeba":
            return "celeba has attributes; choose those whose combinations are the classes by --class_attributes"
        return f"{self.name} has no classes; of a folder, they are its subfolders, each with the images of a class"


def load_dataset(
    dataset_type: str,
    data_dir: str | os.PathLike,
    img_size: int | tuple[int, int],
    *,
    train: bool = True,
    channels: int | None = None,
    attributes: Sequence[str] = (),
) -> ImageDataset:
    """Load a data set and scale it to `img_size` pixels, one number for squares or (height, width).

    Of each picture the largest centred rectangle of that shape is cut and scaled (bilinear, antialiased).

    Types:
        fashion_mnist_10k: 10,000 Fashion-MNIST training images that come with this package; `data_dir` is ignored.
            It has no held-out split of its own: the first 8,000 serve as train, the last 2,000 as test.
        cifar10, mnist, fashion_mnist: torchvision's, found under `data_dir` or downloaded to it. Fetch them once
            before starting several processes.
        celeba: torchvision's, likewise; of each 178x218 picture the centre 140x140, or of
            other shapes the largest rectangle whose shorter side is 140 at most.
        Their classes, and their names, are the data set's. Those of CelebA are the combinations of `attributes`, as
            "Male" and "Smiling", 2^k of k; without them it has none.
        folder: every image below `data_dir`, whether in class folders or not, in sorted order. Where `data_dir` has
            subfolders `train` and `test`, `train` chooses between them; otherwise all images are used either way and
            the result's `split` says "all". `train` beside `val` or the like is refused. `channels` is 1 or 3
            (default 3); files are converted as needed. Where all images are in subfolders, two or more and one level
            deep, those are classes.

    Every file of a folder is opened before training starts, so that a damaged one is named at once. For the types
    other than `folder`, `channels` may only repeat what the data set has.

    Raises:
        UserError: unknown type, impossible size, channels or attributes, files missing and not downloadable, damaged.
    """
    if not isinstance(dataset_type, str) or dataset_type not in _LOADERS:
        raise UserError(f"unknown data set {dataset_type!r}; choose one of {', '.join(DATASET_TYPES)}")
    size = check_size(img_size, "img_size")
    if not 1 <= min(size) <= max(size) <= MAX_SIZE:
        raise UserError(f"img_size {size} is outside 1 to {MAX_SIZE}; choose the network's image size")
    if attributes and dataset_type != "celeba":
        raise UserError(f"--class_attributes: {dataset_type} has no attributes, celeba has; drop the flag")
    request = _Request(dataset_type, Path(data_dir or "."), size, train, channels, tuple(attributes))
    dataset = _LOADERS[dataset_type](request)
    if channels not in (None, dataset.channels):
        raise UserError(f"{dataset_type} has {dataset.channels} channels, not {channels}; leave channels out")
    return dataset


@dataclass(frozen=True)
class _Request:
    name: str
    data_dir: Path
    img_size: ImageSize
    train: bool
    channels: int | None
    attributes: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        return "train" if self.train else "test"


def _array_dataset(
    request: _Request, array: torch.Tensor, labels: object, classes: Sequence[str], *, flip: bool = False
) -> ImageDataset:
    """labels: one a picture, whole numbers."""
    source = ImageSource(
        request.name,
        request.split,
        ImageArray(array, request.img_size),
        len(array),
        channels=3 if array.dim() == 4 else 1,
        img_size=request.img_size,
        flip=flip,
        labels=torch.as_tensor(labels),
        classes=classes,
    )
    return ImageDataset(source)


def _shipped(request: _Request) -> ImageDataset:
    chosen = slice(0, SHIPPED_TRAIN) if request.train else slice(SHIPPED_TRAIN, None)
    images, labels = (read_idx(SHIPPED / f"{part}-ubyte.gz")[chosen] for part in ("images-idx3", "labels-idx1"))
    return _array_dataset(request, images, labels, tv.FashionMNIST.classes)


def _fetch(request: _Request, make: Callable[[], object], subfolder: str):
    """Call torchvision with its download switched on; say in which subfolder the files belong if that fails."""
    try:
        return make()
    except Exception as error:  # torchvision's readers of damaged files raise nearly anything
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        place = request.data_dir / subfolder
        raise UserError(f"cannot load or download {request.name} ({reason}); put its files under {place}") from error


def _cifar10(request: _Request) -> ImageDataset:
    source = _fetch(
        request,
        lambda: tv.CIFAR10(request.data_dir, train=request.train, download=True),
        "cifar-10-batches-py, or the archive cifar-10-python.tar.gz beside it",
    )
    return _array_dataset(request, torch.from_numpy(source.data), source.targets, source.classes, flip=True)


def _mnist(request: _Request) -> ImageDataset:
    kind = {"mnist": tv.MNIST, "fashion_mnist": tv.FashionMNIST}[request.name]
    source = _fetch(request, lambda: kind(request.data_dir, train=request.train, download=True), f"{kind.__name__}/raw")
    return _array_dataset(request, source.data, source.targets, source.classes)


def _celeba(request: _Request) -> ImageDataset:
    source = _fetch(
        request,
        lambda: tv.CelebA(request.data_dir, split=request.split, download=True),
        "celeba (the text lists, and the pictures in img_align_celeba)",
    )
    folder = request.data_dir / source.base_folder / "img_align_celeba"
    read = ImageFiles([folder / name for name in source.filename], 3, request.img_size, folder, CELEBA_CROP)
    chosen = request.attributes
    names = [name for name in source.attr_names if name]  # the list's line of names ends with a blank
    source = ImageSource(
        request.name,
        request.split,
        read,
        len(read.paths),
        channels=3,
        img_size=request.img_size,
        flip=True,
        labels=combined(source.attr, names, chosen, trained_on=request.train) if chosen else None,
        classes=combinations(chosen),
    )
    return ImageDataset(source)


def _part_of(request: _Request) -> tuple[Path, str]:
    """The folder that holds the images asked for, and its name. Raises UserError where it is not clear which."""
    folder = request.data_dir
    if not (folder / "train").is_dir():
        return folder, "all"
    if (folder / "test").is_dir():
        return folder / request.split, request.split
    held_out = [name for name in HELD_OUT if (folder / name).is_dir()]
    if held_out:
        raise UserError(
            f"--data_dir={folder} holds train and {held_out[0]}: rename {held_out[0]} to test, or give "
            f"--data_dir={folder / 'train'} to use that alone"
        )
    return folder, "all"


def _folder(request: _Request) -> ImageDataset:
    channels = 3 if request.channels is None else request.channels
    if channels not in (1, 3):
        raise UserError(f"channels {channels} is not possible; choose 1 (grey) or 3 (colour)")
    folder, split = _part_of(request)
    read = ImageFiles(list_images(folder), channels, request.img_size, folder)
    others = left_out(folder)
    labels, classes = _class_folders(read.paths, folder, request, split)
    source = ImageSource(
        request.name,
        split,
        read,
        len(read.paths),
        channels=channels,
        img_size=request.img_size,
        flip=True,
        note=f"{folder}" + (f"; left out, convert them to .png to use them: {others}" if others else ""),
        labels=labels,
        classes=classes,
    )
    dataset = ImageDataset(source)
    if dataset.images is None:  # otherwise everything has just been decoded
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(check_image, read.paths):
                pass
    return dataset


def _class_folders(
    paths: Sequence[Path], folder: Path, request: _Request, split: str
) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    """The images' classes and their names; None and () unless each is in one of several folders, one level deep.

    Of `train` and `test`, the folders of `train` are the classes, so that numbers mean the same in both.
    """
    places = [path.relative_to(folder).parts for path in paths]
    names = sorted({place[0] for place in places})
    if split == "test":
        train = request.data_dir / "train"
        names = sorted({path.relative_to(train).parts[0] for path in list_images(train)})
    if len(names) < 2 or any(len(place) != 2 or place[0] not in names for place in places):
        return None, ()
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[place[0]] for place in places]), tuple(names)


_LOADERS: dict[str, Callable[[_Request], ImageDataset]] = {
    "fashion_mnist_10k": _shipped,
    "cifar10": _cifar10,
    "mnist": _mnist,
    "fashion_mnist": _mnist,
    "celeba": _celeba,
    "folder": _folder,
}
