"""Data sets of the zoo, whole and on the device: a batch is a slice, with no Python per example."""
