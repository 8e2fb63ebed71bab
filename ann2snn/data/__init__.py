"""Images for training and comparison: data sets, and batches that a resumed run repeats exactly."""

from .attributes import attributes_of
from .datasets import ImageDataset, ImageSource, load_dataset
from .loader import Share, batches, labels_at, to_model_range, to_uint8

__all__ = [
    "ImageDataset",
    "ImageSource",
    "Share",
    "attributes_of",
    "batches",
    "labels_at",
    "load_dataset",
    "to_model_range",
    "to_uint8",
]
