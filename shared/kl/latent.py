"""Latent-variable models: the parts of the KL to the prior, and importance-weighted bounds.

E_x KL(q(z|x) || p(z)) = I(x; z) + KL(q(z) || prod_j q(z_j)) + sum_j KL(q(z_j) || p(z_j)),
Chen et al. 2018, eq. 2, with a standard normal prior and q(z) the average of q(z|x) over the data.
The bounds are those of Burda, Grosse and Salakhutdinov 2015.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .conventions import widened
from .gaussian.diagonal import normal_log_prob


class KLDecomposition(NamedTuple):
    """Three terms in nats, one value per sample; their sum is log q(z|x) - log p(z)."""

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise: Tensor


def decompose_kl(
    z: Tensor, mu: Tensor, logvar: Tensor, batch_mu: Tensor, batch_logvar: Tensor, dataset_size: int
) -> KLDecomposition:
    """The three terms by minibatch-weighted sampling (Chen et al. 2018, Appendix C.1, eq. S3).

    log q(z) is estimated by log 1/(N M) sum_j q(z|x_j) over the M data points of the batch. That is
    biased, and so are mutual information and total correlation; the sum of the three is exact for
    every sample, whatever the batch.

    Args:
        z: [n, d] samples, z_i from q(z|x_i) with ``mu`` and ``logvar`` [n, d].
        batch_mu, batch_logvar: [m, d] of the whole batch, which holds the n rows too.
        dataset_size: N, the number of data points behind q(z).

    Returns:
        Three tensors [n].

    Raises:
        ValueError: the data set is smaller than the batch.
    """
    z, mu, logvar, batch_mu, batch_logvar = widened(
        z=z, mu=mu, logvar=logvar, batch_mu=batch_mu, batch_logvar=batch_logvar
    )
    m = batch_mu.shape[0]
    if dataset_size < m:
        raise ValueError(f"dataset_size {dataset_size} is smaller than the batch of {m}")
    pairs = normal_log_prob(z[:, None], batch_mu, batch_logvar)  # [n, m, d]
    log_nm = math.log(dataset_size * m)
    log_q_z_given_x = normal_log_prob(z, mu, logvar).sum(-1)
    log_q_z = torch.logsumexp(pairs.sum(-1), 1) - log_nm
    log_prod_q_zj = (torch.logsumexp(pairs, 1) - log_nm).sum(-1)
    log_p_z = normal_log_prob(z, torch.zeros_like(z), torch.zeros_like(z)).sum(-1)
    return KLDecomposition(
        log_q_z_given_x - log_q_z, log_q_z - log_prod_q_zj, log_prod_q_zj - log_p_z
    )


def log_mean_exp(x: Tensor, dim: int) -> Tensor:
    """log of the mean of exp(x) over ``dim``, stable; the dimension is removed."""
    (x,) = widened(x=x)
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
    (log_weights,) = widened(log_weights=log_weights)
    weights = torch.exp(log_weights - log_weights.detach().amax(dim, keepdim=True))
    size = weights.sum(dim).square() / weights.square().sum(dim)
    return size.clamp(1, log_weights.shape[dim])  # but for rounding
