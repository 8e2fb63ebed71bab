"""A user's program, for `make types`: it must pass the checker, and what is wrong in it must not."""

# mypy: warn-unused-ignores
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import ann2snn


def convert_and_count(folder: Path) -> list[float]:
    """Spikes of an image and call: all calls, the first; the gap; what another program loads."""
    ann = ann2snn.pretrained("fashion-mnist-32-4bit")
    snn: ann2snn.SpikingNetwork = ann2snn.convert(ann, signed=True)
    images: Tensor = ann2snn.sample(snn, n=1, steps=2, carry=True, progress=False)
    account = ann2snn.cost(snn, trajectory=ann2snn.trajectory(ann, steps=2), carry=True)
    found = [account.total("spikes"), float(images.numel())]
    if account.first is not None:
        found.append(account.first.total("spikes"))
    x, t = torch.zeros(1, 1, 32, 32), torch.tensor([500])
    found.append(ann2snn.gap(ann, snn, x, t).prediction.error)
    ann2snn.save(snn, folder / "snn.pt")
    again: nn.Module = ann2snn.load(folder / "snn.pt")
    return [*found, float((again(x, t) - snn(x, t)).detach().norm())]


def convert_own(net: nn.Module, batch: Tensor) -> float:
    """Share of a foreign network's multiply-accumulates that read spikes."""
    return ann2snn.convert(ann2snn.quantize(net, bits=4, calibrate=[batch])).describe(batch).share


def refused(snn: ann2snn.SpikingNetwork) -> None:
    """Every line is an error; the checker reports a remark that nothing needs."""
    ann2snn.sample(snn, n="8")  # type: ignore[arg-type]
    ann2snn.sample(snn)  # type: ignore[call-arg]
    ann2snn.cost(snn).first.total("spikes")  # type: ignore[union-attr]
    ann2snn.nothing()  # type: ignore[attr-defined]
    ann2snn.convert("a network")  # type: ignore[arg-type]
