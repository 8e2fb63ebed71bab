"""Runs of seconds that train spiking networks directly, and what is compared of them."""

from pathlib import Path

import torch

from ann2snn.nets.sddpm import SDDPM
from tests.scripts import SAMPLING

COMMON = [
    "--dataset_type=fashion_mnist_10k", "--img_size=8", "--ch=4", "--ch_mult=1", "--ch_mult=2", "--device=cpu",
    "--num_res_blocks=1", "--timestep=2", "--T=20", "--num_threads=1", *SAMPLING,
]  # fmt: skip
RUN = ["--log_step=1", "--save_step=2", "--sample_step=0", "--sample_size=3", "--gen_images=3", "--gap_images=1"]
SHAPES = {
    "sddpm": ["--arch=sddpm", *COMMON],
    "fsddim": ["--arch=fsddim", *COMMON, "--mean_type=v", "--beta_schedule=cosine", "--loss_type=scl"],
}


def training(arch: str, logdir: Path, steps: int, *extra: str) -> list[str]:
    """Flags of SNN_train.py."""
    optimizer = ["--lr=1e-2", "--warmup=2", "--batch_size=4", "--ema_decay=0.5", "--dropout=0.1"]
    return ["--train", *SHAPES[arch], *RUN, *optimizer, f"--total_steps={steps}", f"--logdir={logdir}", *extra]


def tuning(logdir: Path, steps: int, *extra: str) -> list[str]:
    """Flags of SNN_ft.py that make SDM of the SDDPM in `logdir`."""
    method = ["--fine_tune", "--ft_method=tsm", f"--ft_steps={steps}", "--ft_batch_size=4", "--num_threads=1"]
    return [*method, *RUN, *SAMPLING, "--lr=1e-2", "--ema_decay=0.5", f"--logdir={logdir}", *extra]


def weights(path: Path, key: str = "ema_model") -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)[key]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def pictures(folder: Path) -> dict[str, bytes]:
    """Generated images by their numbers, of the one folder that `folder` holds them in."""
    [found] = [path for path in folder.glob("generated/*") if path.is_dir()]
    return {path.name: path.read_bytes() for path in sorted(found.glob("*.png"))}


def learned(net: SDDPM) -> dict[str, torch.Tensor]:
    """The parameters that training moves."""
    return {name: value.detach() for name, value in net.named_parameters() if value.requires_grad}
