"""What leaves for hardware and its simulators: a converted network as a graph of NIR's primitives."""

from .export import export_nir

__all__ = ["export_nir"]
