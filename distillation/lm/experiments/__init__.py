"""Programs that make the figures of the README."""
