"""Gradients and comparisons for expectations that are sums over every outcome."""

import torch


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def gradient(value, at):
    (grad,) = torch.autograd.grad(value, at, retain_graph=True)
    return grad
