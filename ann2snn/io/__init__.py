"""Files: checkpoints, images, statistics."""
