"""Demonstration and benchmark of the KL toolbox."""
