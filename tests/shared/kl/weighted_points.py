"""Random points with random weights, and the least cost of moving some onto others."""

import numpy as np
import torch
from scipy.optimize import linprog


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(*shape, seed=0):
    return randn(*shape, seed=seed + 100).softmax(-1)


def cheapest(cost, a, b):
    """min <P, cost> over plans P with marginals a and b, by linear programming."""
    n, m = cost.shape
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    result = linprog(
        cost.flatten().numpy(),
        A_eq=np.vstack([rows, columns]),
        b_eq=np.concatenate([a.numpy(), b.numpy()]),
    )
    assert result.status == 0
    return result.fun
