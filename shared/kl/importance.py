"""Log-evidence from importance weights (Burda, Grosse and Salakhutdinov 2015)."""

import math

import torch
from torch import Tensor


def log_mean_exp(x: Tensor, dim: int) -> Tensor:
    """log of the mean of exp(x) over ``dim``, stable; the dimension is removed."""
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])


def importance_weighted_bound(log_weights: Tensor, dim: int = 0) -> Tensor:
    """log 1/K sum_k w_k, a lower bound on log p(x) in expectation; K = 1 is the ELBO.

    Burda et al. 2015, eq. 8. With log_w = log p(x, z_k) - log q(z_k | x), the gap to log p(x) is a
    KL divergence that shrinks to zero as K grows.

    Args:
        log_weights: log importance weights, K of them along ``dim``; nats.

    Returns:
        Nats, the shape of ``log_weights`` without ``dim``.
    """
    return log_mean_exp(log_weights, dim)


def effective_sample_size(log_weights: Tensor, dim: int = 0) -> Tensor:
    """(sum w)^2 / sum w^2 over ``dim``, between 1 and K: how many samples carry the estimate."""
    return torch.exp(2 * torch.logsumexp(log_weights, dim) - torch.logsumexp(2 * log_weights, dim))
