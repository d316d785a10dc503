"""A training run: its folder, checkpoints, interruption and reports."""
