"""Find image files and decode them within bounds."""

import os
import warnings
from collections import Counter
from fractions import Fraction
from pathlib import Path

import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import center_crop, pil_to_tensor

from ..config import ImageSize
from ..errors import UserError
from ..files.plain import open_plain

#: Endings of other pictures, which are left out, and said to be.
OTHER_ENDINGS = (".gif", ".jfif", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".jpe", ".apng", ".tga", ".raw")
# Pillow picks a decoder by content, not by name; only those that need no outside program are let in.
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 64 * 2**20
MAX_BYTES = 256 * 2**20  # of an image file; MAX_PIXELS in three channels of a BMP fit in
# Pillow warns where this module refuses, and about oddities of files that decode all the same.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")
GREY_MODES = ("1", "L", "LA", "La")
DEEP_MODES = ("I", "F")  # and "I;16" and its kin: Pillow would clip these to 8 bits, not scale them


def list_images(folder: str | os.PathLike) -> list[Path]:
    """Return every image file below `folder`, sorted by its path relative to `folder`.

    Image files are known by torchvision's list of extensions, in either case. Names that start with a dot are left
    out. Links to folders are followed, each real folder once.

    Raises:
        UserError: `folder` is no folder, or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds the images")
    paths = images_below(folder)
    if not paths:
        raise UserError(f"no image in {folder}; put files there that end in one of {' '.join(IMG_EXTENSIONS)}")
    return paths


def images_below(folder: Path, endings: tuple[str, ...] = IMG_EXTENSIONS) -> list[Path]:
    """As `list_images`, of files with these endings; none where there is no image, or no folder."""
    real_folders, paths = {os.path.realpath(folder)}, []
    for parent, subfolders, files in os.walk(folder, followlinks=True):
        fresh = []
        for name in sorted(subfolders):
            real = os.path.realpath(os.path.join(parent, name))
            if not name.startswith(".") and real not in real_folders:
                real_folders.add(real)
                fresh.append(name)
        subfolders[:] = fresh  # os.walk descends into what is left here
        paths += [Path(parent, f) for f in files if not f.startswith(".") and f.lower().endswith(endings)]
    return sorted(paths, key=lambda path: path.relative_to(folder).parts)


def left_out(folder: Path) -> str:
    """The pictures below a folder that `list_images` leaves out, such as "3 .gif, 1 .avif"; "" if there are none."""
    endings = Counter(path.suffix.lower() for path in images_below(folder, OTHER_ENDINGS))
    return ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))


def check_image(path: Path) -> None:
    """Look at an image file's header, and at its checksums where the format has them, without decoding it.

    Raises:
        UserError: the file is damaged or too large; the message names it.
    """
    try:
        with open_plain(path, MAX_BYTES) as file, Image.open(file, formats=FORMATS) as image:
            _refuse(image, path)
            image.verify()
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise _broken(path, error) from error


def decode_image(path: Path, channels: int | None = None) -> Image.Image:
    """Decode a file to a Pillow image of mode "L" (`channels` 1) or "RGB" (3).

    With `channels` None, grey files give "L" and all others "RGB". What is transparent shows white, a camera's rotation
    mark is applied; the first frame of an animation counts.

    Raises:
        UserError: the file is damaged, too large, or has more than 8 bits per channel; the message names it.
    """
    try:
        with open_plain(path, MAX_BYTES) as file, Image.open(file, formats=FORMATS) as image:
            _refuse(image, path)
            if channels is None:
                channels = 1 if image.mode in GREY_MODES else 3
            mode = "L" if channels == 1 else "RGB"
            return _on_white(_upright(image)).convert(mode)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damaged input makes Pillow's decoders raise nearly anything
        raise _broken(path, error) from error


def _upright(image: Image.Image) -> Image.Image:
    """The image as the camera was held."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # the note may be damaged where the picture is not
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _on_white(image: Image.Image) -> Image.Image:
    """The image without transparency: programs leave any colour behind what cannot be seen."""
    if not (image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info):
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def fit(image: Image.Image, size: ImageSize, crop: int | None = None) -> torch.Tensor:
    """Cut the largest centred rectangle of the shape of `size` and scale it to that; uint8 [C, H, W].

    crop: the most pixels that the rectangle's shorter side may have.

    The scaling is Pillow's bilinear one, which widens its filter when it shrinks (antialias) and gives the same
    bytes on every machine.
    """
    height, width = size
    factors = [Fraction(image.height, height), Fraction(image.width, width)]
    factor = min(factors + ([Fraction(crop, min(size))] if crop else []))
    cut = max(1, round(width * factor)), max(1, round(height * factor))
    if image.size != cut:
        image = center_crop(image, [cut[1], cut[0]])
    if cut != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return pil_to_tensor(image)


def _refuse(image: Image.Image, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"image {path} has {image.width}x{image.height} pixels, more than {MAX_PIXELS}; shrink or delete it"
        )
    if image.mode in DEEP_MODES or image.mode.startswith("I;"):
        raise UserError(f"image {path} has more than 8 bits per channel; convert it to 8 bits")


def _broken(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    if isinstance(error, UnidentifiedImageError):  # Pillow's text shows the open file object
        reason = f"it is no {', '.join(FORMATS)} image"
    return UserError(f"cannot read image {path}: {reason or type(error).__name__}; replace or delete the file")
