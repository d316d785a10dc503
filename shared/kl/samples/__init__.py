"""Divergences estimated from samples."""
