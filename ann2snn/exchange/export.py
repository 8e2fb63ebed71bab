"""Files that other runtimes run: a quantized network, or the same network of neurons, as one pass."""

from __future__ import annotations

import importlib.util
import io
import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from ..config import DiffusionConfig, require
from ..convert import SpikingNetwork, convert
from ..convert.network import is_random
from ..errors import UserError, one_line
from ..files.atomic import replacing
from ..nets.direct import DirectDenoiser
from ..ptq.calls import copied, leaves, map_tensors
from .plain import plain
from .qdq import with_qdq

PROGRAM, ONNX = "program", "onnx"


def export_to(kind: str, net: nn.Module, path: str | os.PathLike) -> None:
    """kind: "program" or "onnx". Raises UserError as the two functions do."""
    (export_onnx if kind == ONNX else export_program)(net, path)


def export_program(net: nn.Module, path: str | os.PathLike, *example: Any, **named: Any) -> None:
    """Write a quantized network, or its converted one under `layer_sync`, as a torch.export program: a new file.

    example, named: arguments of a call, of which tensors have the batch as their first axis, in any size; may be left
    out for networks of this program and of `quantize`. `torch.export.load(path).module()` is called as the network is,
    with batches of any size, needs no code of this program, and answers the same to the last bit where the runtime's
    own operations are the same. A network and its converted one are the same program: one pass of a network of neurons
    under `layer_sync` is a network of quantizers (docs/models.md).

    Raises UserError for what runs in more than one pass (`stream`), is in training mode, has no quantizers, or cannot
    be followed by torch.export; and where there is something at `path`.
    """
    program = _exported(net, path, example, named, PROGRAM)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"ann2snn.json": json.dumps(_about(net))})
    _write(path, file.getvalue())


def export_onnx(net: nn.Module, path: str | os.PathLike, *example: Any, **named: Any) -> None:
    """The same as an ONNX file, whose quantizers are pairs of QuantizeLinear and DequantizeLinear (`exchange.qdq`).

    Levels are those of the network for the same numbers, halves included; a runtime's convolutions and norms round in
    their own way, in float32. Weights are float32 as the network computes with them, or int8 behind a DequantizeLinear
    where that is exact. NaN has no level: such a file does not hand it on.

    Raises UserError as `export_program`, for networks that are not in float32, and where packages are missing.
    """
    program = _exported(net, path, example, named, ONNX)
    try:
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:  # of many classes
        raise UserError(f"ONNX cannot hold this network: {_reason(error)}") from error
    assert exported is not None
    exported.model.metadata_props.update(_about(net))
    _write(path, exported.model_proto.SerializeToString())


def check_exported(net: nn.Module, path: str | os.PathLike, kind: str) -> None:
    """kind: "program" or "onnx". Raises UserError as the functions do, as far as it shows before."""
    if kind == ONNX:
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        require(not missing, f"ONNX needs the packages {', '.join(missing)}: pip install {' '.join(missing)}")
        require(hasattr(torch.onnx, "ops"), f"ONNX's Q/DQ nodes need torch 2.8, and this is {torch.__version__}")
    require(not os.path.lexists(path), f"{path} exists: nothing is overwritten; choose another name")
    require(not isinstance(net, DirectDenoiser), "a directly trained network has no quantizers to write")
    if not isinstance(net, SpikingNetwork):
        return
    require(type(net) is SpikingNetwork, f"a {type(net).__name__} cannot be written: export the network it was made of")
    require(
        not net.clock.is_stream,
        "a network under stream runs in several passes, and a file holds one: use --schedule=layer_sync, or in Python "
        'net.spiking = net.spiking.changed(schedule="layer_sync", settle_steps=0, burst=1)',
    )
    require(not net.clock.keeps, "levels are carried: export outside of carrying(), as a file answers from rest")


def _exported(net: nn.Module, path: str | os.PathLike, example: tuple, named: dict, kind: str) -> Any:
    """The torch.export program. Raises UserError."""
    check_exported(net, path, kind)
    training = net.training or any(module.training and is_random(module) for module in net.modules())
    require(not training, "the network is in training mode: call .eval() first")
    snn = net if isinstance(net, SpikingNetwork) else convert(net)
    args, kwargs = (example, named) if example or named else snn.example()
    if not (example or named) and _process(snn.net) is not None and getattr(snn.net, "num_classes", None):
        args = (*args, torch.zeros(len(args[0]), dtype=torch.int64))  # it is told its images' classes
    with torch.no_grad():
        inside = copied(snn.net).cpu()
        exportable = with_qdq(inside) if kind == ONNX else plain(inside)
    calls = batched((args, kwargs))
    shapes, batch = torch.export.ShapesCollection(), torch.export.Dim.DYNAMIC
    tensors = [value for value in leaves(calls) if isinstance(value, Tensor) and value.dim()]
    for value in tensors:
        if len(value) == len(tensors[0]):
            shapes[value] = {0: batch}
    try:
        with torch.no_grad():
            return torch.export.export(exportable, *calls, dynamic_shapes=shapes, strict=False)
    except UserError:
        raise
    except Exception as error:  # of many classes
        raise UserError(f"torch.export cannot follow this network: {_reason(error)}") from error


def batched(call: tuple[tuple, dict]) -> tuple[tuple, dict]:
    """A call on the CPU of two rows at least: torch.export takes a batch of one for a network of one."""
    tensors = [value for value in leaves(call) if isinstance(value, Tensor) and value.dim()]
    rows = len(tensors[0]) if tensors else 0

    def placed(value: Tensor) -> Tensor:
        value = value.detach().cpu()
        alone = rows == 1 and value.dim() and len(value) == 1
        return value.repeat(2, *[1] * (value.dim() - 1)) if alone else value.clone()

    return map_tensors(call, placed)


def _reason(error: Exception) -> str:
    """The first line of an error of torch, which may go on for pages."""
    return one_line(str(error).strip().partition("\n")[0] or type(error).__name__, 300)


def _about(net: nn.Module) -> dict[str, str]:
    """What a reader of the file must know, where the network does."""
    diffusion = _process(net)
    return {"written_by": "ann2snn"} | ({} if diffusion is None else {"diffusion": json.dumps(diffusion.to_dict())})


def _process(net: nn.Module) -> DiffusionConfig | None:
    """That of a network of this program: others may call anything `diffusion`."""
    diffusion = getattr(net, "diffusion", None)
    return diffusion if isinstance(diffusion, DiffusionConfig) else None


def _write(path: str | os.PathLike, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)
