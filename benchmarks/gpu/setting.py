"""What the steps of the proof share: device, sizes, networks, and how findings are written."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ann2snn.config import DiffusionConfig, TrainConfig, UNetConfig
from ann2snn.distributed.runtime import place
from ann2snn.distributed.world import World
from ann2snn.nets.architecture import build_network
from ann2snn.nets.attention_unet import AttentionUNetConfig
from ann2snn.nets.fsddim import FSDDIMConfig
from ann2snn.nets.sddpm import SDDPMConfig
from ann2snn.quant.calibrate import calibrate_activations
from ann2snn.training.trainer import Computing, Trainer


@dataclass(frozen=True)
class Setting:
    """device: that is proven. tiny: sizes for a try on a CPU. out: the file that findings are appended to."""

    device: torch.device
    tiny: bool
    out: Path

    @classmethod
    def of_arguments(cls, description: str) -> Setting:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--device", default="cuda")
        parser.add_argument("--tiny", action="store_true", help="sizes for a try on a CPU")
        parser.add_argument("--out", type=Path, required=True, help="file of findings, a line of JSON each")
        args = parser.parse_args()
        torch.manual_seed(0)
        return cls(torch.device(args.device), args.tiny, args.out)

    def record(self, name: str, **values: object) -> None:
        """A finding, on the disk at once: the step may be cut short."""
        with open(self.out, "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name} | values) + "\n")

    def attempt(self, name: str, action: Callable[[], dict[str, object]]) -> None:
        """What `action` finds; a failure is a finding too, and stops nothing."""
        try:
            self.record(name, **action())
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0][:300]
            self.record(name, failed=f"{type(error).__name__}: {reason}")

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, job: Callable[[], object], rounds: int = 5, warmup: int = 2) -> float:
        """Median seconds of a call, the device idle before and after."""
        if self.tiny:
            rounds, warmup = 2, 1
        times = []
        for index in range(warmup + rounds):
            self.wait()
            start = time.perf_counter()
            job()
            self.wait()
            if index >= warmup:
                times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    @property
    def unet(self) -> dict[str, object]:
        """The published CIFAR-10 U-Net (34 M parameters), or a tiny one."""
        if self.tiny:
            return {"image_size": 8, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
        return {"image_size": 32, "ch": 128, "ch_mult": (1, 2, 2, 2), "num_res_blocks": 2, "norm_groups": 32}

    def configs(self) -> dict[str, object]:
        """Every architecture, small."""
        small = {"in_channels": 1, "image_size": 8, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1}
        unet = small | {"norm_groups": 4, "diffusion_steps": 50}
        attention = small | {"norm_groups": 4}
        direct = small | {"spike_steps": 2, "diffusion_steps": 50}
        return {
            "unet": UNetConfig(bits=32, **unet),
            "unet, 2 bits": UNetConfig(bits=2, **unet),
            "unet, 4 bits, spike-driven, 4-bit weights": UNetConfig(bits=4, weight_bits=4, spike_driven=True, **unet),
            "attention": AttentionUNetConfig(**attention),
            "attention, 3 bits": AttentionUNetConfig(bits=3, **attention),
            "sddpm": SDDPMConfig(**direct),
            "sdm": SDDPMConfig(tsm=True, **direct),
            "fsddim": FSDDIMConfig(**direct),
        }

    def network(self, config: object, dtype: torch.dtype = torch.float32, device: str = "") -> nn.Module:
        """With seeded weights of ordinary size, calibrated where it is quantized, in eval mode."""
        torch.manual_seed(0)
        net = build_network(config, DiffusionConfig(diffusion_steps=getattr(config, "diffusion_steps", 1000)))
        for parameter in net.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        net = net.to(dtype).eval()
        if getattr(config, "bits", 32) != 32 and "spike_steps" not in config.to_dict():
            calibrate_activations(net, [self.inputs(net, 2, torch.device("cpu"))])
        return place(net, torch.device(device) if device else self.device)

    def inputs(self, net: nn.Module, count: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Seeded noise and times, the same numbers on every device."""
        generator, like = torch.Generator().manual_seed(1), next(net.parameters())
        x = torch.randn(count, net.in_channels, *net.image_size, generator=generator)
        t = torch.randint(net.diffusion.diffusion_steps, (count,), generator=generator)
        device = device or self.device
        return x.to(device, like.dtype), t.to(device)

    def trainer(self, config: object, batch: int, amp: bool = False, tf32: bool = False) -> Trainer:
        diffusion = DiffusionConfig(diffusion_steps=getattr(config, "diffusion_steps", 1000))
        train = TrainConfig(batch_size=batch, warmup=1, total_steps=1000)
        return Trainer(config, diffusion, train, World(self.device), Computing(amp, tf32))

    def images(self, config: object, batch: int) -> Tensor:
        """uint8, as a data set gives them."""
        shape = (batch, config.in_channels, *config.image_size)
        return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance, in float64 on the CPU."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-300))
