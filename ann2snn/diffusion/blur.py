"""Blurring diffusion (Hoogeboom, Salimans, 2023) with the constants of gDDIM: images lose their high frequencies first.

In the frequencies y = DCT(x) every coefficient diffuses on its own:  y_t = √α_t·D_t·y_0 + √(1−α_t)·ε, with the blur
D_t = (1−d)·exp(−Λσ_B²/2) + d per frequency. The transform is orthonormal, so white noise is white in both spaces.
States are frequencies; networks see pixels and predict the noise in pixels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import SQUARE_32, DiffusionConfig, ImageSize, check_size, require
from ..distributed.runtime import sent
from .continuous_time import ContinuousTime
from .linear_process import Times, scalars, time_array

PRIOR_RATIO = 80.0  # sampling starts where √(1/α − 1) has this distance from its value at t = 0


@dataclass(frozen=True)
class BDMConfig:
    """Constants of gDDIM's blur experiments.

    image_size: in pixels. sigma_blur_max: standard deviation σ_B of the blur at t = 1, in pixels.
    min_blur: d, what is left of the highest frequencies. offset: of the cosine schedule of α.
    t_end: where sampling stops. t_min: smallest time in training.
    """

    image_size: ImageSize = SQUARE_32
    sigma_blur_max: float = 10.0
    min_blur: float = 0.001
    offset: float = 0.004
    t_end: float = 1e-5
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", check_size(self.image_size))
        require(
            1 <= min(self.image_size) and max(self.image_size) <= 4096, f"--img_size={self.image_size}: use 1 to 4096"
        )
        require(0 <= self.sigma_blur_max < 1e4, f"blur sigma_blur_max={self.sigma_blur_max}: use 0 to 10000")
        require(0 < self.min_blur <= 1, f"blur min_blur={self.min_blur}: use a value above 0, at most 1")
        # A larger offset would put the start of sampling after t = 1, where the blur decreases again.
        require(0 < self.offset <= 0.008, f"blur offset={self.offset}: use a value above 0, at most 0.008")
        for name in ("t_end", "t_min"):
            require(0 < getattr(self, name) < 0.9, f"blur {name}={getattr(self, name)}: use a value between 0 and 0.9")

    def to_dict(self) -> dict:
        return asdict(self) | {"image_size": self.image_size.stored}


class BDM(ContinuousTime):
    """Blur diffusion of images of one size. Sampling starts just before t = 1, where α is 1.6e-4."""

    config: BDMConfig

    def __init__(self, config: BDMConfig | None = None) -> None:
        self.config = config or BDMConfig()
        self.sites = tuple(self.config.image_size)
        self.t_end, self.layer = self.config.t_end, self.config.offset
        self.t_min = self.config.t_min
        down, across = ((np.pi * np.arange(size) / size) ** 2 for size in self.sites)
        self.frequencies = down[:, None] + across  # Λ [H, W]
        self.dct_matrices = tuple(_dct_matrix(size) for size in self.sites)  # of columns [H, H] and of rows [W, W]
        first = float(self.alpha(0.0))
        last = first / ((PRIOR_RATIO + math.sqrt(1 - first)) ** 2 + first)
        self.t_start = self._angle_to_time(math.acos(math.sqrt(last)))

    @classmethod
    def of(cls, config: DiffusionConfig, image_size: ImageSize) -> BDM:
        return cls(BDMConfig(image_size=image_size))

    def _angle_to_time(self, angle: float) -> float:
        return angle * 2 / math.pi * (1 + 2 * self.config.offset) - self.config.offset

    def _angle(self, t: np.ndarray) -> np.ndarray:
        return (t + self.config.offset) / (1 + 2 * self.config.offset) * np.pi / 2

    def alpha(self, t: Times) -> np.ndarray:
        """α_t = cos²(π/2·(t + offset)/(1 + 2·offset))."""
        return np.cos(self._angle(np.asarray(t, dtype=np.float64))) ** 2

    def blur_sigma(self, t: Times) -> np.ndarray:
        """σ_B(t) = sigma_blur_max·sin²(πt/2)."""
        return self.config.sigma_blur_max * np.sin(np.pi / 2 * np.asarray(t, dtype=np.float64)) ** 2

    def blur(self, t: Times) -> np.ndarray:
        """D_t [..., H, W]."""
        exponent = self.blur_sigma(t)[..., None, None] ** 2 / 2 * self.frequencies
        return (1 - self.config.min_blur) * np.exp(-exponent) + self.config.min_blur

    def gain(self, t: Times) -> np.ndarray:
        """√α_t·D_t [..., H, W]: what a frequency of x_0 has become."""
        return np.sqrt(self.alpha(t))[..., None, None] * self.blur(t)

    def _log_gain_rate(self, t: Times) -> np.ndarray:
        """d/dt log(√α·D) [..., H, W]."""
        t = np.asarray(t, dtype=np.float64)
        alpha_rate = -np.tan(self._angle(t)) * np.pi / 2 / (1 + 2 * self.config.offset)
        sigma_rate = self.config.sigma_blur_max * np.pi / 2 * np.sin(np.pi * t)
        blur = self.blur(t)
        blur_rate = -(self.blur_sigma(t) * sigma_rate)[..., None, None] * self.frequencies
        return alpha_rate[..., None, None] + blur_rate * (blur - self.config.min_blur) / blur

    def transition(self, t: Times, s: Times) -> np.ndarray:
        return scalars(self.gain(t) / self.gain(s))

    def covariance(self, t: Times) -> np.ndarray:
        return scalars(self._per_site(1 - self.alpha(t)))

    def factor(self, t: Times, kind: str = "R") -> np.ndarray:
        return np.sqrt(self.covariance(t))

    def drift(self, t: Times) -> np.ndarray:
        return scalars(self._log_gain_rate(t))

    def diffusion(self, t: Times) -> np.ndarray:
        """g² = d(1−α)/dt − 2f(1−α)."""
        angle = self._angle(np.asarray(t, dtype=np.float64))
        growth = np.sin(2 * angle) * np.pi / 2 / (1 + 2 * self.config.offset)
        return scalars(self._per_site(growth) - 2 * self._log_gain_rate(t) * self._per_site(1 - self.alpha(t)))

    def _per_site(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values)[..., None, None] * np.ones(self.sites)

    def breaks(self, t: float, s: float) -> np.ndarray:
        """Also narrow towards t = 1 + offset, where α is 0 and its inverse has a pole."""
        pole = 1 + self.config.offset
        mirrored = pole - super().breaks(pole - t, pole - s)
        both = np.union1d(super().breaks(t, s), np.clip(mirrored, min(t, s), max(t, s)))
        return both if t < s else both[::-1]

    # ---- states --------------------------------------------------------------------------------------------------

    def check_state(self, state: Tensor) -> None:
        require(
            state.dim() == 4 and tuple(state.shape[-2:]) == self.sites,
            f"blur diffusion is set up for images of {'x'.join(map(str, self.sites))} pixels, "
            f"not for {'x'.join(map(str, state.shape[2:])) or 'points'}",
        )

    def dct(self, x: Tensor) -> Tensor:
        """Orthonormal two-dimensional DCT-II of each channel [N, C, H, W]."""
        self.check_state(x)
        down, across = self._matrices(x)
        return down @ x @ across.T

    def idct(self, y: Tensor) -> Tensor:
        """The inverse of `dct`."""
        self.check_state(y)
        down, across = self._matrices(y)
        return down.T @ y @ across

    def _matrices(self, like: Tensor) -> list[Tensor]:
        return [sent(torch.as_tensor(matrix, dtype=like.dtype), like.device) for matrix in self.dct_matrices]

    def network_input(self, state: Tensor) -> Tensor:
        return self.idct(state)

    def from_network(self, output: Tensor) -> Tensor:
        return self.dct(output)

    def data(self, state: Tensor) -> Tensor:
        return self.idct(state)

    def diffuse(self, x_0: Tensor, t: Tensor, noise: Tensor, factor: str = "R") -> Tensor:
        """p(x_t | x_0) in pixels: x_0 and noise [N, C, H, W], t [N] → x_t. The network's target is `noise`."""
        times = time_array(t)
        blurred = self.idct(self.apply(scalars(self.gain(times)), self.dct(x_0)))
        sigma = sent(torch.as_tensor(np.sqrt(1 - self.alpha(times)), dtype=x_0.dtype), x_0.device)
        return blurred + sigma.view(-1, 1, 1, 1) * noise


def _dct_matrix(size: int) -> np.ndarray:
    """C [size, size] with C·x the orthonormal DCT-II of x."""
    angles = np.pi / size * np.arange(size)[:, None] * (np.arange(size) + 0.5)
    matrix = np.cos(angles) * math.sqrt(2 / size)
    matrix[0] = math.sqrt(1 / size)
    return matrix
