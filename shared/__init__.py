"""Modules that more than one application needs, one job each."""
