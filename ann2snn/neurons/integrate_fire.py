"""The neuron that stands in a quantizer's place. It holds a level k, its net spike count, and in every time step

    r = min(step / T, 1)                              the share of the window that has passed
    target = clip(floor(r·(x − β)/Δ + 1/2), lo, hi)   x: what has arrived so far, on average
    e = clip(target − k, −m, m);  k ← k + e           the events it sends now; m = 1: one spike, of either sign
    answer = Δ·k/r + β                                what its spikes so far average to

Nothing else in the network changes. docs/theory.md proves what follows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..config import require
from ..errors import UserError
from ..kernels import IFState, Levels, Neurons, NormRule, Spikes, follow, if_scan, norm_follow
from .clock import AT_ONCE, Clock

Read = Callable[[Any], Levels | None]
#: What a user hangs on a quantizer stands around its neuron.
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
_State = TypeVar("_State")


class IFNeuron(nn.Module):
    """Integrate-and-fire neurons in place of `quantizer`, whose parameters they have, under the same names.

    read: how to read the quantizer's levels. Beyond its parameters there may be `charge`, the initial membrane
    potential in units of the threshold (None: 1/2), [] or per channel ([C, 1, 1] for images, [C] for features).

    A module that is called several times in a pass has a state for each call. With
    `SpikingConfig.if_neuron="reference"` the published neuron runs instead (`kernels.if_scan`); on the currents of a
    step either integrates what arrives.
    """

    quantizer: nn.Module
    charge: nn.Parameter | None
    unit_events: bool = False  # True where Δ is in the weights of the layers that follow (convert/fold.py)
    is_constant: bool = False  # what it quantizes does not depend on the call, as a weight: it stays a quantizer

    def __init__(self, quantizer: nn.Module, read: Read, clock: Clock) -> None:
        super().__init__()
        # The same dictionaries, so that whatever moves, loads or replaces parameters reaches the quantizer as well.
        self._parameters, self._buffers, self._modules = quantizer._parameters, quantizer._buffers, quantizer._modules
        self._non_persistent_buffers_set = quantizer._non_persistent_buffers_set
        self.__dict__["quantizer"], self._version = quantizer, quantizer._version
        for name in _HOOKS:
            self.__dict__[name], quantizer.__dict__[name] = quantizer.__dict__[name], OrderedDict()
        self.read, self.clock = read, clock
        self.register_parameter("charge", None)
        self.reset()

    def __call__(self, *args: Any, **named: Any) -> Any:
        return super().__call__(*args, *named.values())  # whatever the quantizer calls its only argument

    @property
    def levels(self) -> Levels:
        """As the quantizer has them now. Raises UserError where it has been switched off."""
        levels = self.read(self.quantizer)
        if levels is None:
            raise UserError(f"a {type(self.quantizer).__name__} has been switched off: neurons need its levels")
        return levels

    @property
    def theta(self) -> Tensor:
        """The threshold Δ·T: what a constant input must be for a spike in every step."""
        clip = getattr(self.quantizer, "clip", None)  # to the last bit what a quantizer calls it
        return self.levels.step * self.clock.spike_steps if clip is None else clip()

    @property
    def event_size(self) -> Tensor:
        """What an event of a step is worth when it leaves the layer: θ, or 1 once θ is in the next weights."""
        return torch.ones_like(self.theta) if self.unit_events else self.theta

    def train(self, mode: bool = True) -> IFNeuron:
        self.quantizer.training = mode  # its submodules are this module's
        return super().train(mode)

    def _save_to_state_dict(self, *args: Any) -> None:
        self.quantizer._save_to_state_dict(*args)  # with whatever it keeps beside parameters and buffers

    def _load_from_state_dict(self, *args: Any) -> None:
        self.quantizer._load_from_state_dict(*args)

    def neurons(self, x: Tensor) -> Neurons:
        """The layer's rule for an input like x [L·N, *S], for the kernels."""
        levels = self.levels.fitted(x.dim())
        size = torch.ones_like(levels.step) / self.clock.spike_steps if self.unit_events else None
        return Neurons(levels, self.charge, self.clock.config.signed, size)

    def reset(self) -> None:
        """Forget all input."""
        self.states: list[Any] = []  # for each call in a pass, a level [N, *S], or an `_Integrated`
        self.at = _Place()

    def keep(self) -> None:
        """Part the levels from how they came about: what gradients need, and inference mode."""
        with torch.inference_mode(False):
            self.states = [state.clone() if state.is_inference() else state.detach() for state in self.states]

    def forward(self, x: Tensor) -> Tensor:
        """x [L·N, *S], what has arrived on average in each step (or its currents) → the answers, of the same shape."""
        if self.is_constant:
            return self.quantizer(x)
        if self._is_its_quantizer():
            answer = self.quantizer(x)
            if isinstance(answer, Tensor):  # and nothing that wraps one, as brevitas' answers do
                return answer
            kind = type(answer)
            require(
                kind not in (tuple, list, dict),
                f"a {type(self.quantizer).__name__} answers a {kind.__name__}, "
                "and a neuron one tensor: let the quantizer do so",
            )
        neurons, clock = self.neurons(x), self.clock
        if neurons.levels.before is not None:
            x = neurons.levels.before(x)
        x = clock.unfold(x)
        if clock.is_stream and (clock.on_currents or clock.config.if_neuron == "reference"):
            return clock.fold(self._integrate(x, neurons))
        level = self._state(lambda: self._rest(x[0], neurons))
        answers, level = follow(x, level, neurons, clock.paces(), self._report(), clock.smooth)
        if clock.is_stream or clock.keeps:
            self.states[self.at.turn] = level
        return clock.fold(answers)

    def _is_its_quantizer(self) -> bool:
        """Whether it answers as its quantizer does, which is quicker: at once, with nobody who listens or learns."""
        clock = self.clock
        if clock.is_stream or clock.keeps or clock.monitor is not None or clock.asks or clock.smooth:
            return False
        alpha = self._parameters.get("act_alpha")  # one for all channels, unless fine-tuning has given each its own
        is_plain = self.charge is None and not self.unit_events and (alpha is None or alpha.dim() == 0)
        return is_plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling()

    def misreads(self, x: Tensor, answer: Tensor) -> bool:
        """Whether the quantizer has answered x otherwise than its levels say, by more than ties and rounding explain.

        A class may inherit how its levels are read, and not how it computes.
        """
        neurons = self.neurons(x)
        levels = neurons.levels
        own, _ = follow((x if levels.before is None else levels.before(x))[None], None, neurons, AT_ONCE)
        near = levels.step * (1.5 if levels.level is None else 0.6)
        return own[0].shape != answer.shape or bool(((own[0] - answer).abs() > near).any())

    def _rest(self, x: Tensor, neurons: Neurons) -> Tensor | None:
        """Levels before the first step of an input like x [N, *S]; None where the first step is the last."""
        _check_channels(neurons, x)
        return neurons.rest(x) if self.clock.is_stream or self.clock.keeps else None

    def after_norm(self, norm: nn.GroupNorm, x: Tensor, dtype: torch.dtype | None = None) -> Tensor | Spikes | None:
        """self(norm(x)) [L·N, C, H, W] without forming what the norm answers; x and norm as they are given to it.

        None where norm and neuron must run one after the other. Wants no gradient. dtype: of the answers, None: that of
        the norm's parameters; torch.uint8: `Spikes`, where all levels of the layer are worth the same.
        """
        clock, neurons = self.clock, self.neurons(x)
        not_fused = clock.is_stream and (clock.on_currents or clock.config.if_neuron == "reference" or clock.smooth)
        # Half precision does not tell 200 from 200.5.
        not_fused = not_fused or bool(self._forward_hooks or self._forward_pre_hooks)
        if not_fused or self.is_constant or neurons.levels.before is not None or norm.weight.dtype.itemsize < 4:
            return None
        x, rule, paces = clock.unfold(x), NormRule.of(norm), clock.paces()
        level = self._state(lambda: self._rest(x[0].to(norm.weight.dtype), neurons))
        if dtype == torch.uint8 and (neurons.worth.dim() or neurons.levels.has_offset or clock.monitor):
            dtype = None
        answers = norm_follow(x, rule, level, neurons, paces, dtype, self._report()).flatten(0, 1)
        as_spikes = dtype == torch.uint8
        return Spikes(answers, -neurons.levels.lo, self._worth_by_row(neurons, x)) if as_spikes else answers

    def _worth_by_row(self, neurons: Neurons, x: Tensor) -> Tensor:
        """What a level is worth in each row of x [L, N, …]: [], or [L·N, 1, 1, 1] while the window passes."""
        shares = [pace.share for pace in self.clock.paces()]
        if min(shares) == 1:
            return neurons.worth
        return (neurons.worth / neurons.worth.new_tensor(shares)).repeat_interleave(x.shape[1]).view(-1, 1, 1, 1)

    def _state(self, initial_state: Callable[[], _State]) -> _State:
        """The state of this call: calls of one module in a pass are told apart by their order."""
        at, clock = self.at, self.clock
        if at.chunk != clock.chunk:
            at.chunk, at.turn = clock.chunk, -1
        at.turn += 1
        if at.turn == len(self.states):
            if not self.states:
                clock.awake.append(self)
            self.states.append(initial_state())
        return self.states[at.turn]

    def _integrate(self, x: Tensor, neurons: Neurons) -> Tensor:
        """A neuron that integrates: x [L, N, *S] → the currents that it sends [L, N, *S], or their running means."""
        clock, theta, size = self.clock, self.theta, self.event_size
        state = self._state(lambda: _Integrated(x[0], neurons, theta))
        if state.level.shape != x.shape[1:]:
            shapes = f"{tuple(state.level.shape)} but the input has {tuple(x.shape[1:])}"
            raise ValueError(f"neuron state has shape {shapes}; reset the network")
        current = x if clock.on_currents else state.currents(x, clock.elapsed)
        if clock.config.if_neuron == "reference":
            events = if_scan(current, state.published, theta, clock.config.signed, clock.smooth)
        else:
            events = state.follow(current, neurons, clock)
        report = self._report()
        if report is not None:
            for event in events:
                report(event.detach())
        if clock.on_currents:
            return events * size
        counts, state.count = events.cumsum(0) + state.count, state.count + events.sum(0)
        steps = [min(clock.elapsed + index + 1, clock.spike_steps) for index in range(len(x))]
        return counts * (size / torch.tensor(steps).to(size).view(-1, *[1] * (x.dim() - 1)))

    def _report(self) -> Callable[[Tensor], None] | None:
        """Where the events of each step go; None if nobody asks."""
        clock = self.clock
        if clock.monitor is None and not clock.asks:
            return None

        def report(events: Tensor) -> None:
            if clock.asks:
                clock.notice(events)
            if clock.monitor is not None:
                clock.monitor.record(self, events[None], not clock.is_stream)

        return report

    def expand(self, shape: tuple[int, ...], *, thresholds: bool, charges: bool) -> None:
        """Give the layer a threshold and/or an initial charge of `shape`, of the values it has now.

        Raises UserError for thresholds where the quantizer does not keep them in one parameter `act_alpha`.
        """
        if thresholds:
            common = self._parameters.get("act_alpha")
            if not isinstance(common, nn.Parameter):
                raise UserError(f"thresholds of a {type(self.quantizer).__name__} cannot be learned one by one")
            self.act_alpha = nn.Parameter(common.detach().expand(shape).clone())
        if charges:
            now = 0.5 if self.charge is None else self.charge.detach()
            self.charge = nn.Parameter(torch.zeros(shape).to(self.levels.step.detach()) + now)

    def adopt(self, entries: dict[str, Tensor]) -> None:
        """Make room for what a file holds: a charge, or a threshold per channel. Values are loaded afterwards."""
        for name in ("act_alpha", "charge"):
            held = getattr(self, name, None)
            if name in entries and (held is None or held.shape != entries[name].shape):
                setattr(self, name, nn.Parameter(torch.zeros_like(entries[name]).to(self.levels.step.detach())))

    def extra_repr(self) -> str:
        levels = self.levels
        return f"levels={levels.lo}..{levels.hi}, step={float(levels.step.detach().mean()):.4g}"


def _check_channels(neurons: Neurons, x: Tensor) -> None:
    """x [N, *S]. Raises UserError where a file's thresholds or charges are not one per channel of it."""
    for value in (neurons.levels.step, neurons.charge):
        behind = () if value is None else value.shape
        if behind:
            ends = x.shape[x.dim() - len(behind) :] if len(behind) < x.dim() else ()
            fits = len(ends) == len(behind) and all(n in (1, m) for n, m in zip(behind, ends, strict=True))
            require(fits, f"a layer of channels {list(x.shape[1:])} has thresholds or charges {list(behind)}")


@dataclass
class _Place:
    """Which call of a module in which pass it is."""

    chunk: int = -1
    turn: int = -1


class _Integrated:
    """What a neuron knows of the currents so far."""

    def __init__(self, x: Tensor, neurons: Neurons, theta: Tensor) -> None:
        """x [N, *S], like the input."""
        self.level = neurons.rest(x)
        self.total = torch.zeros_like(self.level)  # of the input, in currents
        self.count = torch.zeros_like(self.level)
        self.published = IFState.rest(self.level, theta, 0.5 if neurons.charge is None else neurons.charge)

    def currents(self, means: Tensor, elapsed: int) -> Tensor:
        """Running means [L, N, *S] of steps elapsed + 1 … → the currents whose means they are."""
        steps = torch.arange(elapsed + 1, elapsed + len(means) + 1, device=means.device)
        totals = means * steps.to(means).view(-1, *[1] * (means.dim() - 1))
        before = torch.cat([self.total[None], totals[:-1]])
        self.total = totals[-1]
        return totals - before

    def follow(self, current: Tensor, neurons: Neurons, clock: Clock) -> Tensor:
        """Currents [L, N, *S] → the events of a neuron whose level follows their running total."""
        steps = torch.arange(1, len(current) + 1, device=current.device) + clock.elapsed
        totals = current.cumsum(0) + self.total
        means = totals / steps.clamp(max=clock.spike_steps).to(current).view(-1, *[1] * (current.dim() - 1))
        events: list[Tensor] = []
        before = self.level.clone()
        unit = Neurons(neurons.levels, neurons.charge, neurons.takes_back, torch.ones_like(neurons.levels.step))
        answers, self.level = follow(means, self.level, unit, clock.paces(), events.append, clock.smooth)
        self.total = totals[-1]
        if not answers.requires_grad:
            return torch.stack(events).to(current.dtype)
        shares = answers.new_tensor([pace.share for pace in clock.paces()])
        reached = answers * shares.view(-1, *[1] * (answers.dim() - 1))
        return reached - torch.cat([before.detach()[None].to(reached), reached[:-1]])
