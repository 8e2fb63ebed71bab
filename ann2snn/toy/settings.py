"""The settings of a toy run, checked before anything is computed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..config import SAMPLERS, DiffusionConfig, ImageSize, SampleConfig, check_int, check_seed, require

SIZE = 8  # pixels
IMAGE_SIZE = ImageSize(SIZE, SIZE)
SQUARES, FASHION = "squares", "fashion"
IMAGES = (SQUARES, FASHION)
NAMES = ("gaussian8", "gaussian25", "swissroll", "rings", *IMAGES)
# The samplers of VP limit the predicted data to [−1, 1]; no set reaches 2.5 standard deviations.
REACH = 2.5
LIMITS = {
    "train_steps": (1, 10**6),
    "batch_size": (1, 10**5),
    "width": (1, 4096),
    "layers": (1, 64),
    "waves": (0, 16),
    "samples": (1, 10**5),
}
MOST_COLUMNS = 8


def shape_of(name: str) -> tuple[int, ...]:
    """Of one element: (2,), or (1, 8, 8)."""
    return (1, SIZE, SIZE) if name in IMAGES else (2,)


@dataclass(frozen=True)
class ToySettings:
    """points, process, samplers and numbers of network calls; T, beta_1 and beta_T are those of VP.

    lam: eta of ddim, λ of gddim and euler. time_power: CLD and blur train on times u^time_power, u uniform; above 1,
    small times, where fine structure forms, come more often. waves: see `nets.mlp.MLP`. linear_first: of
    CLD and blur, see `diffusion.precondition`.
    """

    process: str = "vp"
    points: str = "gaussian8"
    sampler: tuple[str, ...] = ("ddim",)
    steps: tuple[int, ...] = (5, 10, 20, 50)
    order: int = 2
    corrector: str = "none"
    lam: float = 0.0
    T: int = 100
    beta_1: float = 1e-3
    beta_T: float = 0.2
    train_steps: int = 4000
    batch_size: int = 512
    lr: float = 2e-3
    time_power: float = 1.0
    width: int = 192
    layers: int = 3
    waves: int = 5
    linear_first: bool = True
    samples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = check_int(getattr(self, name), f"--{name}")
            require(least <= value <= most, f"--{name}={value}: use {least} to {most}")
        require(0 < self.lr <= 1, f"--lr={self.lr}: use a value above 0, at most 1")
        require(1 <= self.time_power <= 10, f"--time_power={self.time_power}: use 1 to 10")
        check_seed(self.seed)
        require(self.points in NAMES, f"--points={self.points}: use one of {', '.join(NAMES)}")
        pictures = self.points in IMAGES
        require(
            pictures == (self.process == "blur"),
            f"--points={self.points}: --process={self.process} takes "
            + ("square pictures: " + ", ".join(IMAGES) if self.process == "blur" else "points of the plane"),
        )
        require(1 <= len(self.sampler) <= len(SAMPLERS), f"--sampler: name 1 to {len(SAMPLERS)} samplers")
        require(1 <= len(self.steps) <= MOST_COLUMNS, f"--steps: give 1 to {MOST_COLUMNS} numbers of network calls")
        import torch  # not with this file: --help does without

        from ..diffusion.process import check_sampling

        statistics = torch.zeros(self.diffusion.diffusion_steps, dtype=torch.float64)  # of no network: for the checks
        for sample in self.runs():
            check_sampling(self.diffusion, IMAGE_SIZE, sample, statistics)

    @property
    def diffusion(self) -> DiffusionConfig:
        """The process; CLD and blur tell the network times of 0 to 999."""
        if self.process == "vp":
            return DiffusionConfig(diffusion_steps=self.T, beta_1=self.beta_1, beta_T=self.beta_T)
        return DiffusionConfig(process=self.process, linear_first=self.preconditioned)

    @property
    def preconditioned(self) -> bool:
        """Whether the network learns what a linear prediction leaves."""
        return self.linear_first and self.process != "vp"

    @property
    def scale(self) -> float:
        """What the data are divided by before they are diffused."""
        return REACH if self.process == "vp" else 1.0

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of what the network sees; CLD adds a velocity to each coordinate."""
        first, *sides = shape_of(self.points)
        from ..diffusion.process import network_channels

        return (network_channels(self.diffusion, first), *sides)

    def runs(self) -> list[SampleConfig]:
        """Every sampler with every number of calls; ddpm, which takes all steps, once."""
        return [
            self._run(name, self.T if name == "ddpm" else steps)
            for name in dict.fromkeys(self.sampler)
            for steps in (self.steps[:1] if name == "ddpm" else dict.fromkeys(self.steps))
        ]

    def _run(self, name: str, steps: int) -> SampleConfig:
        known = SAMPLERS[name] if name in SAMPLERS else SAMPLERS["ddim"]  # an unknown one is refused below
        order = min(self.order, known.max_order) if known.max_order else 2
        return SampleConfig(
            sampler=name,
            steps=steps,
            eta=self.lam,
            clip=self.process != "cld",
            seed=self.seed,
            order=order,
            corrector=self.corrector if "corrector" in known.options else "none",
        )

    def to_dict(self) -> dict:
        """Plain values, lists for tuples."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
