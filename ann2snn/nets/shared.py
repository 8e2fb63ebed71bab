"""The methods by which networks are shared in the field: those of huggingface_hub, over this program's folders."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from ..config import require
from ..errors import UserError

_Kind = TypeVar("_Kind")


def _program() -> Any:
    """The package, which has loaded this module: files are the business of rooms above, found when they are wanted."""
    return sys.modules[__name__.partition(".")[0]]


class Shared:
    """Of networks that `ann2snn.save` keeps with their settings, ANN or SNN.

    autoencoder: the `latent.Autoencoder` that decodes what they make, of those on latents; no part of their state.
    """

    autoencoder: Any = None
    config: Any

    @property
    def out_channels(self) -> int:
        """Channels of the output: those of the input, or twice as many where it tells the variance of a step."""
        return self.config.denoised_channels

    def save_pretrained(self, save_directory: str | os.PathLike, **about: Any) -> None:
        """Write a new folder, as `ann2snn.save` does, with its options. Raises UserError as that does."""
        require(Path(save_directory).suffix != ".pt", f"{save_directory}: give a folder; ann2snn.save writes .pt files")
        _program().save(self, save_directory, **about)

    @classmethod
    def from_pretrained(cls: type[_Kind], folder: str | os.PathLike, **options: Any) -> _Kind:
        """The network in a folder, as `ann2snn.load` reads it, with its options.

        Raises UserError as that does, for what is no folder here, and for a network of another class.
        """
        advice = "fetch one of the Hub first, huggingface_hub.snapshot_download(name) tells where it is"
        require(Path(folder).is_dir(), f"{folder}: there is no such folder here; {advice}")
        net = _program().load(folder, **options)
        if not isinstance(net, cls):
            kind = type(net).__name__
            raise UserError(f"{folder} holds a {kind}, no {cls.__name__}: use {kind}.from_pretrained, or ann2snn.load")
        return net

    def push_to_hub(
        self, repo_id: str, *, token: str | None = None, private: bool | None = None, commit_message: str = "Upload"
    ) -> str:
        """Upload the folder to huggingface.co, and make the repository where there is none → the commit's address.

        repo_id: "user/name". token: by default the one that `hf auth login` or HF_TOKEN left. Raises UserError without
        the package huggingface_hub or a token, and where the Hub refuses.
        """
        require(
            importlib.util.find_spec("huggingface_hub") is not None,
            "package huggingface_hub is missing: pip install huggingface_hub",
        )
        import huggingface_hub

        token = token or huggingface_hub.get_token()
        require(token is not None, "the Hub wants a token: `hf auth login` once, set HF_TOKEN, or give token=…")
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "network"
            self.save_pretrained(folder)
            hub = huggingface_hub.HfApi(token=token)
            try:
                hub.create_repo(repo_id, private=private, exist_ok=True)
                commit = hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
            except (OSError, ValueError) as error:  # huggingface_hub's own are of these
                raise UserError(f"cannot push to {repo_id}: {error}") from error
        return str(getattr(commit, "commit_url", commit))
