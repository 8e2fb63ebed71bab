"""What leaves for hardware and its simulators: a converted network as a graph of NIR's primitives."""

from .export import GraphFile, export_nir

__all__ = ["GraphFile", "export_nir"]
