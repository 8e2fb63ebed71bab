"""Quantizers in front of a module, or behind it, that leave the module as it is."""

import inspect

from torch import Tensor, nn


def quantize_input(module: nn.Module, quantizer: nn.Module) -> None:
    """Let `quantizer` quantize the first argument of every call of `module`, as its submodule `input_quantizer`.

    It is called by a hook: class, attributes and parameter names of the module stay, and whoever holds a reference to
    it calls the quantizer too. The handle is kept as well, because unpickling it is what keeps the hook's number from
    being given out again.
    """
    module.input_quantizer = quantizer
    handle = module.register_forward_pre_hook(_quantize_input, with_kwargs=True)
    module.input_quantizer_hook = handle  # type: ignore[assignment]  # torch declares submodules and tensors alone


def quantize_output(module: nn.Module, quantizer: nn.Module) -> None:
    """The same for what `module` answers, as its submodule `output_quantizer`."""
    module.output_quantizer = quantizer
    handle = module.register_forward_hook(_quantize_output)
    module.output_quantizer_hook = handle  # type: ignore[assignment]


def first_argument(module: nn.Module) -> str:
    """Name of the first argument of `forward`."""
    return next(iter(inspect.signature(module.forward).parameters))


def _quantize_input(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    quantizer = module.get_submodule("input_quantizer")
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    name = first_argument(module)
    return args, kwargs | {name: quantizer(kwargs[name])}


def _quantize_output(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return module.get_submodule("output_quantizer")(output)
