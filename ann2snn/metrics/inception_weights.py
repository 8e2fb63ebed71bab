"""The FID Inception's weights: where they lie, how they are fetched, and whether they are the published ones."""

import hashlib
import http.client
import sys
import urllib.request
from pathlib import Path

import torch

from ..checkpoints.bounds import check_archive, plain
from ..errors import UserError, is_out_of_memory
from ..files.atomic import cause, replacing, sweep
from ..files.plain import open_plain

FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/" + FILE_NAME
SHA256_START = "6726825d"  # the file's name promises it
MOST_BYTES = 1 << 30  # the published file has 91 MiB
ALTERNATIVE = "or use --extractor=lite0, which needs no download"


def default_path():
    """The place in the torch hub cache where pytorch-fid and others keep the file."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME


def find_weights(path=None, url=URL, timeout=10.0):
    """Path of the weights: `path` if given, else the torch hub cache, filled by a download where need be.

    Args:
        path: a file named by the user.
        url: where to download from.
        timeout: seconds to wait for an answer of the server, or for more data.

    Raises:
        UserError: `path` does not exist, or the download failed; it says where to put the file.
    """
    if path is not None:
        if not Path(path).is_file():
            raise UserError(f"--inception_weights={path} does not exist: download {URL}, {ALTERNATIVE}")
        return Path(path)
    cached = default_path()
    if not cached.is_file():
        _download(url, cached, timeout)
    return cached


def load_weights(path):
    """Reads a weights file.

    Returns:
        (state, published): the state dict, and whether the file is bit for bit the published one.

    Raises:
        UserError: the file is damaged, or does not hold plain tensors by name.
    """
    cure = f"delete it and download {URL} anew, {ALTERNATIVE}"
    try:
        with open_plain(path, MOST_BYTES) as file:
            published = hashlib.sha256(file.read()).hexdigest().startswith(SHA256_START)
            file.seek(0)
            if not published:  # that file is of an old format, which cannot be checked
                check_archive(file)
            state = plain(torch.load(file, map_location="cpu", weights_only=True))
    # The unpickler and both archive formats raise many types; every one means that the file cannot be used.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"Inception weights {path} cannot be read ({type(error).__name__}): {cure}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"Inception weights {path} are no state dict: {cure}")
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise UserError(f"Inception weights {path} hold values that are not finite: {cure}")
    return state, published


def _download(url, target, timeout):
    """Fetches url to target, which appears only when it is whole and its checksum is right."""
    print(f"downloading the Inception weights (91 MiB) from {url}", file=sys.stderr)
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {target.parent}: {cause(error)}") from None
        sweep(target.parent, depth=0)  # up to 91 MiB of each download that was killed
        with replacing(target) as temporary:
            with open(temporary, "wb") as file:
                for block in _blocks(url, timeout):
                    file.write(block)
            if not _sha256(temporary).startswith(SHA256_START):
                raise UserError("the download failed (checksum is wrong)")
    except UserError as error:
        raise UserError(
            f"Inception weights are not at {target} and {error}: put {URL} there, "
            f"or pass its place as --inception_weights=PATH, {ALTERNATIVE}"
        ) from None


def _blocks(url, timeout):
    """Yields what url answers, a MiB at a time. Raises UserError."""
    try:
        # torch.hub's own download has no timeout, and waits for ever behind a firewall that drops packets.
        with urllib.request.urlopen(url, timeout=timeout) as response:
            while block := response.read(1 << 20):
                yield block
    # URLError and timeouts are OSErrors; ValueError: a malformed proxy or URL.
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(f"the download failed ({reason})") from error


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
