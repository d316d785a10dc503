"""Parts of a training step that applications share."""
