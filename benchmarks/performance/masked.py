"""The published way to simulate: neurons that walk through time with boolean masks. The baseline of `stream`.

Written anew from the published rule (docs/conformance.md): the membrane starts at θ/2; a step adds the current, fires
where the membrane reaches θ and subtracts θ there; a signed neuron then takes a spike back where the membrane is at or
below −1e-3 and the net count is positive. What makes it slow is kept: every one of these is an assignment through a
boolean mask, which gathers and scatters.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ann2snn.convert import SpikingNetwork
from ann2snn.errors import UserError
from ann2snn.neurons import IFNeuron

INHIBITION = -1e-3


class MaskedNeuron(nn.Module):
    """IF neuron over the steps of a chunk, [L·N, *S] → [L·N, *S]; `theta`, `signed` as the neuron it replaces."""

    def __init__(self, theta: Tensor, signed: bool) -> None:
        super().__init__()
        self.theta, self.signed = theta, signed
        self.chunk_steps = 1
        self.membrane: Tensor | None = None
        self.count: Tensor | None = None

    def forward(self, current: Tensor) -> Tensor:
        current = current.view(self.chunk_steps, -1, *current.shape[1:])
        if self.membrane is None:
            self.membrane = torch.zeros_like(current[0]) + 0.5 * self.theta
            self.count = torch.zeros_like(current[0])
        train = torch.zeros_like(current)
        for step in range(self.chunk_steps):
            self.membrane = self.membrane + current[step]
            fires = self.membrane >= self.theta
            self.membrane[fires] = self.membrane[fires] - self.theta
            self.count[fires] = self.count[fires] + 1
            train[step][fires] = train[step][fires] + 1
            if self.signed:
                inhibited = (self.membrane <= INHIBITION) & (self.count > 0)
                self.membrane[inhibited] = self.membrane[inhibited] + self.theta
                self.count[inhibited] = self.count[inhibited] - 1
                train[step][inhibited] = train[step][inhibited] - 1
        return train.flatten(0, 1) * self.theta


class MaskedDenoiser(nn.Module):
    """A `stream` network with `MaskedNeuron`s, f(x [N, C, H, W], t [N]) → [N, C, H, W].

    whole_window: True computes a layer for all T steps before the next one, as the published code does; False takes
    the whole network through one time step after another. Both give the same result.

    Raises UserError unless `snn` runs with the published norm and neuron, without settling.
    """

    def __init__(self, snn: SpikingNetwork, whole_window: bool = True) -> None:
        super().__init__()
        config = snn.spiking
        if not (snn.clock.on_currents and config.if_neuron == "reference"):
            raise UserError("the published way is schedule=stream, stream_norm=per_step, if_neuron=reference")
        snn = copy.deepcopy(snn)
        self.unet, self.spike_steps, self.whole_window = snn.net, snn.clock.spike_steps, whole_window
        self.neurons: list[MaskedNeuron] = []
        for name, neuron in list(snn.neurons()):
            self.neurons.append(self._replace(name, neuron, config.signed))

    def _replace(self, name: str, neuron: IFNeuron, signed: bool) -> MaskedNeuron:
        parent, _, last = name.rpartition(".")
        masked = MaskedNeuron(neuron.theta.detach(), signed)
        setattr(self.unet.get_submodule(parent), last, masked)
        return masked

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        steps = self.spike_steps
        chunk = steps if self.whole_window else 1
        for neuron in self.neurons:
            neuron.chunk_steps, neuron.membrane, neuron.count = chunk, None, None
        total = torch.zeros_like(x)
        for _ in range(0, steps, chunk):
            out = self.unet(x.repeat(chunk, 1, 1, 1), t.repeat(chunk))
            total = total + out.view(chunk, *x.shape).sum(0)
        return total / steps
