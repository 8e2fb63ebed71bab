"""From a denoiser to images on disk."""
