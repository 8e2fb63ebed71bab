"""Counting a directly trained spiking network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..nets import fsddim, sddpm
from ..nets.direct import DirectDenoiser, StepConv
from ..neurons import LIFNeuron, StepBatchNorm, unfold_time
from .layers import REAL, SPIKES
from .tally import INPUTS, Counter, Tally, add_block_sums

KINDS = {
    nn.Conv2d: "conv", StepConv: "conv", nn.Linear: "linear", sddpm.TSMConv: "factor", StepBatchNorm: "norm",
    LIFNeuron: "neuron", nn.SiLU: "activation", sddpm.SDDPMBlock: "sum", fsddim.FSDDIMBlock: "sum",
    DirectDenoiser: "readout",
}  # fmt: skip
#: Norms that are not folded, because what they read is no sum of convolutions and linear layers alone.
UNFOLDED = ("tail_bn", "nin_shortcut")
POOLED = 4  # pixels of a 2×2 average: it makes quarters of spikes


class DirectCounter(Counter):
    """Of a directly trained network: S steps in every call, all of them in one pass."""

    def __init__(self, net: DirectDenoiser) -> None:
        super().__init__(net, KINDS)
        self.steps, self.images = net.spike_steps, 0
        self.factors = {
            module.tsmconv: tally for module, tally in self.tallies.items() if isinstance(module, sddpm.TSMConv)
        }
        self.sent: set[float] = set()  # mean over all steps and pixels of each channel that a neuron layer sent

    @property
    def functions(self) -> dict[str, Callable[[Tally, Tensor, Tensor], None]]:
        return {
            "conv": self._synapse,
            "linear": self._synapse,
            "norm": self._norm,
            "neuron": self._neuron,
            "activation": self._activation,
            "sum": add_block_sums,
            "readout": self._readout,
            "factor": lambda tally, x, out: None,  # in the weights of its step, but for a constant current
        }

    def begin(self, x: Tensor, t: Tensor) -> None:
        self.sent.clear()
        self.images = len(t)
        self.image_steps += self.steps * len(t)

    def _channels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Boolean [C] each: channels of x [L·N or N, C, …] that carry spikes, and those with a constant real current.

        A channel carries spikes if it holds whole numbers of quarters up to 1, and their mean is that of a channel
        that some neuron layer sent in this call: copies, concatenation, nearest-neighbour upsampling and averaging
        over pixels keep it.
        """
        channels, none = x.shape[1], x.new_zeros(x.shape[1], dtype=torch.bool)
        if len(x) == self.images and self.steps > 1:
            return none, ~none  # in the rows of the images: computed once per call
        by_channel = x.transpose(0, 1).reshape(channels, -1)
        quarters = by_channel * POOLED
        spikes = ((quarters == quarters.round()) & (by_channel >= 0) & (by_channel <= 1)).all(1)
        spikes &= torch.tensor([mean in self.sent for mean in means(x)], device=x.device)
        if not spikes.all() and not by_channel[spikes].any():  # channels of zeros among real ones
            spikes = none
        steps = unfold_time(x, self.steps).transpose(1, 2).flatten(2)  # [L, C, …]
        constant = (steps[1:] == steps[0]).all(2).all(0) if self.steps > 1 else none
        return spikes, constant & ~spikes

    def _synapse(self, tally: Tally, x: Tensor, out: Tensor) -> None:
        spikes, constant = self._channels(x)
        sent = x[:, spikes]
        # n quarters are n spikes, each with a quarter of the weight.
        share = 1 if torch.equal(sent, sent.round()) else POOLED
        times = (x != 0).to(x.dtype)
        times[:, spikes] = sent * share
        times[self.images :, constant] = 0
        once = float(constant.double().mean())
        runs = once * self.images + (1 - once) * len(x) * share
        tally.run(times, torch.where(spikes, INPUTS.index(SPIKES), INPUTS.index(REAL)), runs)
        rows = self.images if constant.all() else len(x)
        read = real_values(x, ~spikes & ~constant) + real_values(x[: self.images], constant)
        tally.add(values=read + rows * out[0].numel(), activations=sent.numel() * share)
        if constant.all() and self.steps > 1 and tally.module in self.factors:
            # Computed once, so the factors of the steps are not in its weights: they multiply what it gives.
            values = self.steps * self.images * out[0].numel()
            self.factors[tally.module].add(mac=values, values=2 * values)

    def _norm(self, tally: Tally, x: Tensor, out: Tensor) -> None:
        """Nothing where it is folded; else a synapse with one weight per channel."""
        if tally.name.rpartition(".")[2] not in UNFOLDED:
            return
        spikes, constant = self._channels(x)
        sent = x[:, spikes]
        real = real_values(x, ~spikes & ~constant) + real_values(x[: self.images], constant)
        tally.add(ac=float(sent.count_nonzero()), mac=real, values=2 * real + sent.numel(), activations=sent.numel())

    def _neuron(self, tally: Tally, x: Tensor, out: Tensor) -> None:
        updates = out.numel()
        tally.add(neurons=updates // self.steps, spikes=float(out.count_nonzero()), updates=updates)
        tally.add(values=updates, activations=updates, states=2 * updates)
        if isinstance(tally.module, LIFNeuron) and tally.module.rule.decay != 1:
            tally.add(mac=updates)
        self.sent.update(means(out))

    def _activation(self, tally: Tally, x: Tensor, out: Tensor) -> None:
        tally.add(updates=out.numel(), values=2 * out.numel())

    def _readout(self, tally: Tally, x: Tensor, out: Tensor) -> None:
        """out [N, C, H, W]: a leaky membrane adds up SDDPM's steps, after the side branch; others are averaged."""
        values = self.steps * out.numel()
        tally.add(states=2 * values, values=values)
        if isinstance(tally.module, sddpm.SDDPM):
            tally.add(mac=values)
            tally.add(updates=values, values=2 * values)  # the side branch's activation
            tally.add(additions=values, values=3 * values)  # and its sum with the rest
        else:
            tally.add(additions=values, mac=out.numel())


def means(x: Tensor) -> list[float]:
    """Mean of each channel of x [R, C, …] over everything else; exact where x holds quarters."""
    dims = [0, *range(2, x.dim())]
    return (x.sum(dims, dtype=torch.float64) * (x.shape[1] / x.numel())).tolist()


def real_values(x: Tensor, channels: Tensor) -> int:
    """How many values the chosen channels of x [R, C, …] hold."""
    return int(channels.sum()) * (x.numel() // x.shape[1])
