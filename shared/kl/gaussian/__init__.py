"""Gaussians with diagonal and with full covariance."""
