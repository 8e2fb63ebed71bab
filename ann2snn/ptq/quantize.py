"""Quantizers before the layers of any float network, with ranges from calibration calls."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..config import require
from ..errors import UserError
from ..nets.architecture import NETWORKS, build_network
from ..neurons import IFNeuron
from ..quant import QuantReLU, UniformQuantizer, fit_step
from ..quant.place import quantize_input, quantize_output
from .attention import attended, project_all
from .calls import Call, copied, read_calls
from .reach import LAYERS, Site, check_finite, noting

# Values kept of one call of a quantizer, and of all its calls: enough for a stable optimum, searched in milliseconds.
SAMPLES_PER_CALL, LEAST_OF_A_CHANNEL, MOST_SAMPLES = 2**14, 2**10, 2**18

Skip = str | type[nn.Module]


@dataclass(frozen=True)
class Rules:
    """How to quantize; see `quantize`. Raises UserError for values that are none."""

    bits: int
    signed: bool | str
    granularity: str
    method: str
    percentile: float

    def __post_init__(self) -> None:
        is_integer = hasattr(self.bits, "__index__") and not isinstance(self.bits, bool)
        in_range = is_integer and 2 <= operator.index(self.bits) <= 8
        require(in_range, f"bits={self.bits!r}: use a whole number from 2 to 8")
        object.__setattr__(self, "bits", operator.index(self.bits))
        known = isinstance(self.signed, bool) or (isinstance(self.signed, str) and self.signed == "auto")
        require(known, f'signed={self.signed!r}: use "auto", True or False')
        for name, allowed in (("granularity", ("tensor", "channel")), ("method", ("mse", "percentile"))):
            value = getattr(self, name)
            known = isinstance(value, str) and value in allowed
            require(known, f"{name}={value!r}: use {' or '.join(map(repr, allowed))}")
        number = isinstance(self.percentile, Real) and not isinstance(self.percentile, bool)
        good = number and 0 < self.percentile <= 100
        require(good, f"percentile={self.percentile!r}: use a number above 0 and up to 100")

    def quantizer(self, site: Site) -> UniformQuantizer:
        """A quantizer for the site, still without a range."""
        axis = channel_axis(site.module)
        channels = site.shape[axis] if self.granularity == "channel" else None
        quantizer = UniformQuantizer(self.bits, self.signed is True, channels, axis)
        return quantizer.to(site.device, torch.float64 if site.dtype == torch.float64 else torch.float32)


def channel_axis(module: nn.Module) -> int:
    """Axis of the channels, from the end: axis 1 of the batch that a convolution reads, the last one elsewhere."""
    return -1 - len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else -1


def quantize(
    net: nn.Module,
    bits: int,
    calibrate: Iterable,
    *,
    signed: bool | str = "auto",
    skip: Sequence[Skip] = (),
    granularity: str = "tensor",
    method: str = "mse",
    percentile: float = 99.9,
) -> nn.Module:
    """A copy of any float network with uniform quantizers (`ann2snn.quant.UniformQuantizer`), ranges set, in eval mode.

    Quantizers come before every convolution and linear layer but those that no other layer's output reaches (an
    image's first convolution, the first linear layer of a time embedding), and on q, k and v of known attention:
    diffusers', torch's, `register_attention`'s. `net` stays as it is. See docs/own-network.md.

    bits: 2 to 8.
    calibrate: calls of `net`: tuples of arguments, dicts of keyword arguments, or pairs (tuple, dict); a tensor is a
    single argument. Ranges are set in the order of the data flow, each from values that are quantized already.
    signed: "auto" (levels below 0 where calibration saw such values), True or False.
    skip: names, patterns or classes of modules to leave out, with all that is in them.
    granularity: "tensor" or "channel", a step for each. method: "mse", or "percentile" with `percentile`; `fit_step`.

    The steps are parameters, so the answer can be trained like any network; its `example_call`, (args, kwargs) on the
    CPU, is the first of the calls. Raises UserError, which names layers that never run or meet NaN.
    """
    require(isinstance(net, nn.Module), f"net is a {type(net).__name__}: give a torch.nn.Module")
    rules = Rules(bits, signed, granularity, method, percentile)
    calls = read_calls(calibrate)
    _check_float(net)
    skip = (skip,) if isinstance(skip, (str, type)) else skip
    listed = isinstance(skip, Iterable) and not isinstance(skip, bytes)
    require(listed, f"skip={skip!r}: use names or patterns of modules, or module classes")
    skip = tuple(skip)
    # Parameters made in a caller's inference mode could never be trained.
    with torch.inference_mode(False), torch.no_grad(), _random_state_kept(net):
        net = copied(net).eval()
        project_all(net, skipped_modules(net, skip))
        sites = _find_sites(net, skipped_modules(net, skip), calls)
        for site in sites:
            place = quantize_output if site.behind else quantize_input
            place(site.module, rules.quantizer(site))
        _calibrate(net, sites, calls, rules)
    _tell(net, rules.bits)
    net.example_call = tuple(calls[0].stored())  # type: ignore[assignment]  # torch declares tensors and modules alone
    return net


def _tell(net: nn.Module, bits: int) -> None:
    """Set the bits in the configuration of a network of this program, if such a one has these very quantizers."""
    config: Any = getattr(net, "config", None)
    if type(config) not in NETWORKS or not hasattr(config, "bits"):
        return
    config = replace(config, bits=bits)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build_network(config).state_dict().items()}
    if shapes == {name: value.shape for name, value in net.state_dict().items()}:
        net.config = config


def _check_float(net: nn.Module) -> None:
    for name, module in net.named_modules():
        is_quantized = isinstance(module, (UniformQuantizer, IFNeuron))
        is_quantized |= isinstance(module, QuantReLU) and module.quantizes
        message = f"net is quantized already ({name or 'itself'} is a {type(module).__name__}): give the float network"
        require(not is_quantized, message)


@contextmanager
def _random_state_kept(net: nn.Module):
    """Global generators of the CPU and of the network's GPUs end in the state that they began in."""
    devices = {p.device for p in net.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        yield


def skipped_modules(net: nn.Module, skip: Sequence[Skip]) -> set[nn.Module]:
    """Modules that `skip` names (in full, by the beginning of a path, as a pattern, by class), and all within them.

    Raises UserError for an entry that is neither name nor class, or that nothing in `net` answers to.
    """
    named = list(net.named_modules(remove_duplicate=False))
    skipped: set[nn.Module] = set()
    for entry in skip:
        if isinstance(entry, str):
            matches = [m for name, m in named if name and (name == entry or fnmatchcase(name, entry))]
        elif isinstance(entry, type) and issubclass(entry, nn.Module):
            matches = [m for _, m in named if isinstance(m, entry)]
        else:
            raise UserError(f"skip={entry!r}: use names or patterns of modules, or module classes")
        label = entry if isinstance(entry, str) else entry.__name__
        require(bool(matches), f"skip={label}: no such module; net.named_modules() lists them")
        skipped.update(inner for module in matches for inner in module.modules())
    return skipped


def _find_sites(net: nn.Module, skipped: set[nn.Module], calls: list[Call]) -> list[Site]:
    """Where quantizers belong, found on the float network. Raises UserError for modules that never run, or no site."""
    layers = [Site(name, module) for name, module in net.named_modules() if isinstance(module, LAYERS)]
    layers = [site for site in layers if site.module not in skipped]
    factors = [
        [Site(f"{name}.{child}".lstrip("."), getattr(module, child), behind=True) for child in children]
        for name, module in net.named_modules()
        for children in attended(module)
        if not any(getattr(module, child) in skipped for child in children)
    ]
    with noting(net, [*layers, *chain(*factors)]):
        for call in calls:
            call.run(net)
    silent = [sites[0].name for sites in ([[site] for site in layers] + factors) if not any(s.called for s in sites)]
    require(
        not silent,
        f"calibration never calls {', '.join(dict.fromkeys(silent))}: add calls that do, or leave them out with skip= "
        "(a layer whose weight some function reads, without calling the layer, cannot be quantized)",
    )
    # Of a projection and the norm behind it, the last one that runs answers.
    answering = {sites[-1].module: sites[-1] for sites in ([s for s in sites if s.called] for sites in factors)}
    sites = [site for site in layers if site.reached] + list(answering.values())
    require(bool(sites), "nothing to quantize: no convolution or linear layer reads what another one answers")
    return sites


class _Fit:
    """Hook that gives a quantizer, before it answers, the range that fits all it has been given so far."""

    def __init__(self, name: str, rules: Rules) -> None:
        self.name, self.rules = name, rules
        self.values: Tensor | None = None  # [channels or 1, samples]
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, quantizer: UniformQuantizer, args: tuple) -> None:
        x = args[0]
        check_finite(x, self.name)
        if self.rules.signed == "auto" and bool((x < 0).any()):
            quantizer.signed = True
        rows = x.reshape(1, -1) if quantizer.channels is None else x.movedim(quantizer.axis, 0).flatten(1)
        new = self._sample(rows.float(), SAMPLES_PER_CALL)
        self.values = new if self.values is None else self._sample(torch.cat([self.values, new], 1), MOST_SAMPLES)
        if self.values.numel():
            step = fit_step(self.values, quantizer.lo, quantizer.hi, self.rules.method, self.rules.percentile)
            quantizer.scale.copy_(step.reshape(quantizer.scale.shape))

    def _sample(self, rows: Tensor, max_values: int) -> Tensor:
        count = max(max_values // rows.shape[0], LEAST_OF_A_CHANNEL)
        if rows.shape[1] <= count:
            return rows
        return rows[:, torch.randint(rows.shape[1], (count,), generator=self.generator).to(rows.device)]


def _calibrate(net: nn.Module, sites: list[Site], calls: list[Call], rules: Rules) -> None:
    """Set all ranges, in the order the quantizers are called in: each reads what those before it have quantized.

    Raises UserError for quantizers that are not called.
    """
    hooks, fits = [], [_Fit(site.name, rules) for site in sites]
    for site, fit in zip(sites, fits, strict=True):
        quantizer = site.module.get_submodule("output_quantizer" if site.behind else "input_quantizer")
        hooks.append(quantizer.register_forward_pre_hook(fit))
    for call in calls:
        call.run(net)
    for hook in hooks:
        hook.remove()
    # A network whose path depends on values may take another one once it is quantized.
    silent = [fit.name for fit in fits if fit.values is None]
    empty = [fit.name for fit in fits if fit.values is not None and not fit.values.numel()]
    require(not empty, f"calibration gives {', '.join(empty)} empty batches alone: give calls with images")
    require(
        not silent, f"the quantized network never calls {', '.join(silent)}: add calls, or leave them out with skip="
    )
