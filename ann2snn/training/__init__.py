"""The training of a denoiser: its state, its steps, its best weights."""
