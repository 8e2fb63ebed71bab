"""What leaves for other runtimes: a quantized or converted network as a torch.export program or an ONNX file."""

from .export import check_exported, export_onnx, export_program, export_to

__all__ = ["check_exported", "export_onnx", "export_program", "export_to"]
