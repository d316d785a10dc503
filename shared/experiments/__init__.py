"""Harnesses of benchmarks, reproductions and tables."""
