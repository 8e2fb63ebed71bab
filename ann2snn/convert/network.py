"""A network with neurons for quantizers, run over its spike window: called as the original is, answers as it does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..config import AUTO, SpikingConfig, check_carry_steps, check_int, require
from ..errors import UserError
from ..nets.shared import Shared
from ..neurons import Clock, IFNeuron, Monitor
from ..ptq.calls import fresh, leaves, map_tensors
from ..quant import quantized_once
from .running import Carried, Lock, averaged, form_of, repeated
from .trace import Description, trace

#: Of one feature map over a chunk of time steps; measured, and flat around the optimum (docs/performance.md).
CACHED_BYTES = 2**25


def is_random(module: nn.Module) -> bool:
    """Whether a module that is in training mode answers differently, or learns, in every pass."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout > 0
    named = type(module).__name__ in ("StochasticDepth", "DropPath")  # torchvision's, timm's
    return named or isinstance(module, nn.modules.batchnorm._BatchNorm | nn.RReLU)


def window(neurons: Iterable[IFNeuron]) -> int:
    """T, the time steps in which every neuron can reach all of its levels."""
    return max(levels.hi - levels.lo for levels in (neuron.levels for neuron in neurons))


class SpikingNetwork(Shared, nn.Module):
    """Integrate-and-fire network: every quantizer of `net` is a neuron, everything else is as it was.

    One time step is one forward pass of `net`, and the answer is that of the last pass: tensors, tuples or whatever
    else `net` answers with. `layer_sync` takes one pass, in which every layer goes to its levels at once; `stream`
    takes T, in which the input arrives bit by bit, and may settle for some more. What the network does not have itself
    it has from `net` (`config`, `dtype`, `device`, …). `convert` makes one.

    `last_settle_steps`: settling steps in which something still fired or that were asked for, of the last call.
    `restarts`: calls that began from rest while levels were carried (`carrying`). `spike_chunk`: see `set_spike_chunk`.

    Calls from several threads wait for each other. Raises UserError for a call in training mode where batch norm or
    dropout would then answer differently in every pass.
    """

    spike_chunk: int = 0

    def __init__(self, net: nn.Module, clock: Clock) -> None:
        super().__init__()
        self.net, self.clock = net, clock
        self.autoencoder = getattr(net, "autoencoder", None)
        self.last_settle_steps = self.restarts = 0
        self._carried: Carried | None = None
        self._lock = Lock()
        self._random: list[tuple[str, nn.Module]] | None = None
        # Networks of ours are known by construction; those of others show at their first call what reads what, and
        # again where it is given what it was not before, as classes.
        self._description: Description | None = None
        self._forms: set[tuple] | None = None if self.folds_time else set()
        weights = ("weight", "parametrizations")  # quantizers of weights show at the first call
        self._check_signs([name for name, _ in self.neurons() if not any(word in name for word in weights)])

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("net", "clock"):  # not there yet: do not look for it in itself
                raise
            return getattr(self.net, name)

    @property
    def folds_time(self) -> bool:
        """Whether the network allows time steps to stand beside each other in a batch."""
        return getattr(self.net, "folds_time", False)

    @property
    def spiking(self) -> SpikingConfig:
        """How it runs; may be set."""
        return self.clock.config

    @spiking.setter
    def spiking(self, config: SpikingConfig) -> None:
        self.clock.config = config
        self._check_signs([name for name, neuron in self.neurons() if not neuron.is_constant])

    def neurons(self) -> Iterator[tuple[str, IFNeuron]]:
        """(name inside the network, neuron layer) in the order of registration."""
        for name, module in self.net.named_modules():
            if isinstance(module, IFNeuron) and not module.is_constant:
                yield name, module

    @property
    def depth(self) -> int:
        """Neuron layers in sequence on the longest path; where the network does not say, all of them."""
        known = getattr(self.net, "neuron_depth", None)
        return sum(1 for _ in self.neurons()) if known is None else known

    @property
    def settle_limit(self) -> int:
        """Settling steps after which a pure network is silent: every layer needs at most T once its inputs are."""
        calls = sum(max(1, len(neuron.states)) for _, neuron in self.neurons())
        return self.clock.spike_steps * (1 + calls)

    @property
    def time_steps(self) -> str:
        """Latency of a network call in time steps, for people; what hardware adds that delays every layer by a step."""
        window, settle = self.clock.spike_steps, self.spiking.settle_steps
        if not self.clock.is_stream:
            return f"{self.depth} × {window}"
        return f"{window}{f' + {settle}' if settle else ''} (+ {self.depth} where every layer delays by a step)"

    def set_spike_chunk(self, steps: int) -> None:
        """Run `stream` in chunks of at most `steps` time steps, one after another; 0: as many as suit the machine.

        A way of running, not a property of the network: the result is the same but for rounding, and memory grows with
        `steps` instead of T. Where a gradient is wanted, autograd keeps all steps in any case. Raises UserError.
        """
        steps = check_int(steps, "--spike_chunk")
        require(steps >= 0, f"--spike_chunk={steps}: use 1 or more time steps, or 0 for as many as suit the machine")
        self.spike_chunk = steps

    def reset(self) -> None:
        """Forget all levels; done at every call that does not carry them on."""
        for neuron in self.clock.awake:
            neuron.reset()
        self.clock.awake.clear()
        self.clock.elapsed, self.clock.ramp, self.clock.busy = 0, True, None
        if self._carried is not None:
            self._carried.shapes = None

    def describe(self, *args: Any, **kwargs: Any) -> Description:
        """Which layers are neurons, and which linear maps and products read spikes or real values.

        args, kwargs: an example of a call. They may be left out where the network has been called, was quantized by
        `ann2snn.quantize`, or is one of ours. Raises UserError where there is no example.
        """
        description = self._description
        if args or kwargs or description is None:
            args, kwargs = (args, kwargs) if args or kwargs else self.example()
            with self._lock:
                description = self._look(args, kwargs)
        return description

    @contextlib.contextmanager
    def running_as(self, spiking: SpikingConfig | None = None) -> Iterator[None]:
        """Run under another schedule inside the context."""
        previous = self.clock.config
        self.clock.config = spiking or previous
        try:
            yield
        finally:
            self.clock.config = previous

    @contextlib.contextmanager
    def monitored(self, monitor: Monitor | None) -> Iterator[None]:
        """Send every neuron's events to `monitor` inside the context."""
        previous, self.clock.monitor = self.clock.monitor, monitor
        try:
            yield
        finally:
            self.clock.monitor = previous

    def check_carrying(self, steps: int | str = AUTO) -> int | str:
        """Return `steps` as `carrying` takes them. Raises UserError for what it refuses."""
        self.spiking.check_carrying()
        return check_carry_steps(steps)

    @contextlib.contextmanager
    def carrying(self, steps: int | str = AUTO) -> Iterator[SpikingNetwork]:
        """Keep the levels from call to call inside the context, so that spikes are sent only for what changes.

        The first call runs from rest, and settles; later ones find their input there at once. A call with tensors of
        other shapes, or `reset()`, starts from rest again (`restarts` counts). Answers are those of the quantized
        network. steps: time steps of a carried call under `stream`; "auto": until nothing fires. `layer_sync` takes
        one pass, which on hardware is depth × T steps, as a level may move by up to T spikes in a carried call, too.

        Raises UserError for neurons that cannot take spikes back, and for the published dynamics: neither forgets.
        """
        steps = self.check_carrying(steps)
        require(self._carried is None, "carrying() is active already: leave that block first")
        self.reset()
        self.restarts, self._carried, self.clock.keeps = 0, Carried(steps), True
        try:
            yield self
        finally:
            self._carried, self.clock.keeps = None, False
            self.reset()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the original network takes → what it answers."""
        if torch.compiler.is_compiling():
            return self._call(args, kwargs)
        with self._lock:
            return self._call(args, kwargs)

    def _call(self, args: tuple, kwargs: dict) -> Any:
        carried = self._carried
        self.meet(args, kwargs)
        self.check_mode()
        self.last_settle_steps = 0
        goes_on = carried is not None and carried.goes_on(args, kwargs)
        if not goes_on:
            self.reset()
            if carried is not None:
                self.restarts += 1
        in_chunks = self.clock.is_stream and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        completed = False
        try:
            with quantized_once(self, many=False) if in_chunks else contextlib.nullcontext():
                if carried is not None and goes_on:
                    answer = self._carry_on(args, kwargs, carried.steps)
                else:
                    answer = self._from_rest(args, kwargs)
            completed = True
        finally:
            if carried is None or not completed:
                self.reset()  # do not hold a batch of levels between calls
            else:
                carried.begun(args, kwargs)
                for neuron in self.clock.awake:
                    neuron.keep()
        return answer

    def _from_rest(self, args: tuple, kwargs: dict) -> Any:
        """The whole call from rest."""
        if not self.clock.is_stream:
            return self._chunk(args, kwargs, 1)
        answer = self._chunks(args, kwargs, self.clock.spike_steps)
        settle_steps = AUTO if self._carried is not None else self.spiking.settle_steps
        return self._settle(args, kwargs, answer, settle_steps) if settle_steps else answer

    def _carry_on(self, args: tuple, kwargs: dict, steps: int | str) -> Any:
        """A call whose neurons are at the levels of the one before. steps: see `carrying`."""
        self.clock.ramp, self.clock.elapsed = False, self.clock.spike_steps
        if not self.clock.is_stream:
            return self._chunk(args, kwargs, 1)
        return self._settle(args, kwargs, None, steps)

    def _chunks(self, args: tuple, kwargs: dict, steps: int, answer: Any = None) -> Any:
        """`_chunk` of `steps` time steps, as many at once as suit the machine."""
        size = min(self._chunk_size(args, kwargs) or steps, steps)
        for start in range(0, steps, size):
            answer = self._chunk(args, kwargs, min(size, steps - start), answer)
        return answer

    def _chunk_size(self, args: tuple, kwargs: dict) -> int:
        """Time steps to run at once: as set, or as many as a CPU caches of the largest feature map; 0: no limit."""
        if not self.folds_time:
            return 1
        if self.spike_chunk:
            return self.spike_chunk
        x = next(value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        if x.device.type != "cpu" or torch.is_grad_enabled() or x.dim() < 4:
            return 0
        step = len(x) * self.config.ch * x.shape[2] * x.shape[3] * x.element_size()
        return max(1, CACHED_BYTES // max(1, step))

    def _chunk(self, args: tuple, kwargs: dict, steps: int, before: Any = None) -> Any:
        """Run `steps` time steps → the average answer so far. before: that of earlier chunks."""
        clock = self.clock
        clock.begin(steps)
        if self.folds_time:
            if steps > 1:
                args, kwargs = map_tensors((args, kwargs), lambda value: repeated(value, steps))
            answer: Any = clock.average(self.net(*args, **kwargs), before)
        else:
            args, kwargs = fresh((args, kwargs))
            answer = self.net(*args, **kwargs)
            if clock.on_currents:
                answer = averaged(answer, before, clock.spike_steps)
        clock.elapsed += steps
        return answer

    def _settle(self, args: tuple, kwargs: dict, answer: Any, settle_steps: int | str) -> Any:
        """Run on: a fixed number of steps, or until no neuron fires."""
        if not isinstance(settle_steps, str):
            self.last_settle_steps = settle_steps
            return self._chunks(args, kwargs, settle_steps, answer)
        clock = self.clock
        clock.asks = True
        try:
            while True:
                clock.busy = None
                answer = self._chunk(args, kwargs, 1)
                if clock.busy is None or not bool(clock.busy):
                    return answer
                self.last_settle_steps += 1
                if self.last_settle_steps > self.settle_limit:
                    raise RuntimeError(
                        f"the network still fires after {self.settle_limit} settling steps: its forward pass is no "
                        "pure function of its arguments"
                    )
        finally:
            clock.asks, clock.busy = False, None

    def meet(self, args: tuple, kwargs: dict) -> None:
        """Look once at what reads what in calls of this form; nothing else about them needs to be known."""
        if self._forms is not None and not torch.compiler.is_compiling() and form_of(args, kwargs) not in self._forms:
            self._look(args, kwargs)

    def _look(self, args: tuple, kwargs: dict) -> Description:
        """Follow what reads what through one pass from rest, under layer_sync."""
        call = fresh((args, kwargs))
        carried, self._carried = self._carried, None
        keeps, self.clock.keeps = self.clock.keeps, False
        moved = [] if self._description is None else [neuron for _, neuron in self.neurons()]
        self.reset()
        try:
            with self.running_as(SpikingConfig()), self.monitored(None), torch.no_grad():
                self.clock.begin(1)
                self._description = description = trace(self.net, *call)
        finally:
            self.reset()
            self._carried, self.clock.keeps = carried, keeps
            if carried is not None:
                carried.shapes = None  # its levels are forgotten
        for neuron in moved:  # and may again
            neuron.is_constant = False
        tensors = [value for value in leaves((args, kwargs)) if isinstance(value, Tensor)]
        if self._forms is not None and all(value.numel() for value in tensors):  # else nothing was computed
            self._forms.add(form_of(args, kwargs))
        moving = [neuron for _, neuron in self.neurons()]
        if not moving:
            raise UserError("no quantizer's input depends on the network's input: no layer would send spikes")
        self.clock.spike_steps = window(moving)
        self._check_signs([name for name, _ in self.neurons()])
        return description

    def example(self) -> tuple[tuple, dict]:
        """Positional and keyword arguments of a call, on the network's device. Raises UserError if none is known."""
        known = getattr(self.net, "example_call", None)
        if known is None:
            raise UserError("describe(): call the network once, or give an example of a call: describe(x, t)")
        args, kwargs = known() if callable(known) else known
        like = next(self.net.parameters(), torch.empty(0, dtype=torch.get_default_dtype()))

        def placed(value: Tensor) -> Tensor:
            return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)

        return map_tensors((args, kwargs), placed)

    def _check_signs(self, names: list[str]) -> None:
        """Raise UserError where neurons that take nothing back would have to reach levels below 0."""
        if self.spiking.signed:
            return
        neurons = dict(self.neurons())
        below = [name for name in names if neurons[name].levels.lo < 0]
        require(
            not below,
            f"neurons that take nothing back (--nosigned, signed=False) reach no levels below 0, which "
            f"{', '.join(below[:3])}{' …' if len(below) > 3 else ''} have: use signed=True",
        )

    def check_mode(self) -> None:
        if self._random is None:
            self._random = [(name, module) for name, module in self.net.named_modules() if is_random(module)]
        for name, module in self._random:
            if module.training:
                raise UserError(
                    f"{name} is in training mode: a {type(module).__name__} answers differently in every time step; "
                    "call .eval() first"
                )
