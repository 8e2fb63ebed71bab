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
    module.input_quantizer_hook = module.register_forward_pre_hook(_quantize_input, with_kwargs=True)


def quantize_output(module: nn.Module, quantizer: nn.Module) -> None:
    """The same for what `module` answers, as its submodule `output_quantizer`."""
    module.output_quantizer = quantizer
    module.output_quantizer_hook = module.register_forward_hook(_quantize_output)


def first_argument(module: nn.Module) -> str:
    """Name of the first argument of `forward`."""
    return next(iter(inspect.signature(module.forward).parameters))


def _quantize_input(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    if args:
        return (module.input_quantizer(args[0]), *args[1:]), kwargs
    name = first_argument(module)
    return args, kwargs | {name: module.input_quantizer(kwargs[name])}


def _quantize_output(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return module.output_quantizer(output)
