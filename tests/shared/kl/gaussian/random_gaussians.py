"""Random pairs of Gaussians with full covariance matrices."""

import torch

F64 = torch.float64


def covariance(rng, *batch, d=3, scale=1.0, dtype=F64):
    factor = torch.randn(*batch, d, d, generator=rng, dtype=dtype)
    return scale * (factor @ factor.mT + torch.eye(d, dtype=dtype))


def gaussians(seed=0, *batch, d=3, dtype=F64):
    rng = torch.Generator().manual_seed(seed)
    mu_p, mu_q = (torch.randn(*batch, d, generator=rng, dtype=dtype) for _ in range(2))
    cov_p, cov_q = (covariance(rng, *batch, d=d, dtype=dtype) for _ in range(2))
    return mu_p, cov_p, mu_q, cov_q
