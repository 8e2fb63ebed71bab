"""Autoencoders: diffusion in the space of their latents, and images from these."""

from .autoencoder import Autoencoder, as_images, attach, autoencoder_for, check_attached
from .files import load_autoencoder, save_autoencoder
from .network import AutoencoderConfig, ConvAutoencoder

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "ConvAutoencoder",
    "attach",
    "autoencoder_for",
    "check_attached",
    "load_autoencoder",
    "as_images",
    "save_autoencoder",
]
