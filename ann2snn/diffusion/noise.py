"""Random numbers of sampling: image i of seed s draws its own stream, whatever the batch it is computed in."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..distributed.runtime import sent


class ImageNoise:
    """Standard normal draws for the images `indices` of seed `seed`; call once per draw.

    Each image has its own counter-based generator, keyed by (seed, index). Drawn on the CPU in float32, then moved,
    so that neither device nor batch changes an image's noise. (torch's CPU generator keeps 32 bits of its seed, too
    few for 50,000 distinct images.)

    For a GPU, a thread draws ahead while the network computes (not measured on one yet).
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: Sequence[int], device, dtype=torch.float32) -> None:
        self.generators = [
            np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index]))) for index in indices
        ]
        self.shape, self.device, self.dtype = tuple(shape), torch.device(device), dtype
        self._thread = ThreadPoolExecutor(1) if self.device.type == "cuda" and self.generators else None
        self._ahead: Future | None = None

    def __call__(self) -> Tensor:
        """Next draw [len(indices), *shape]."""
        if not self.generators:
            return torch.empty(0, *self.shape, device=self.device, dtype=self.dtype)
        if self._thread is None:
            return torch.from_numpy(self._draw()).to(device=self.device, dtype=self.dtype)
        rows = self._thread.submit(self._draw).result() if self._ahead is None else self._ahead.result()
        self._ahead = self._thread.submit(self._draw)
        return sent(torch.from_numpy(rows), self.device).to(self.dtype)

    def _draw(self) -> np.ndarray:
        return np.stack([generator.standard_normal(self.shape, dtype=np.float32) for generator in self.generators])
