"""Divergences of Gaussians with full covariance matrices.

Means [..., d], covariances [..., d, d]; batch dimensions broadcast and the result has their shape.
Everything is computed in float64, because a Cholesky factor of condition 1e3 in float32 leaves no
digit of a KL of 1e-7, and returned in the inputs' precision (float32 at least). A diagonal
Gaussian joins in as ``torch.diag_embed(logvar.exp())``; two of them are cheaper in
``gaussian.diagonal``.

Always raised as ValueError naming the argument: integer tensors, shapes that do not fit,
covariances that are not symmetric or not positive definite.

With the Cholesky factors L_p and L_q, p is compared with q in the coordinates where q is standard:
M = L_q^-1 L_p = I + E. E is computed from the difference of the factors and vanishes when they are
equal, so that nothing cancels near p = q.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..conventions import check_floating, only_plain_operations
from .diagonal import check_order, expm1_minus_x

_SYMMETRIC_WITHIN = 1e-5  # of the largest entry; float32 products of matrices reach 1e-6


class _Whitened(NamedTuple):
    """p where q is standard: E = L_q^-1 L_p - I [..., d, d] and z = L_q^-1 (mu_p - mu_q)."""

    e: Tensor
    log_diagonal: Tensor  # log M_ii [..., d]; sums to log det M
    z: Tensor


def common_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_shapes(**named: Tensor) -> None:
    """ValueError unless means and matrices come in the order mean, matrix, mean, matrix and fit."""
    check_floating(**named)
    (first, mu_p), *_ = named.items()
    d = mu_p.shape[-1] if mu_p.dim() else 0
    if d == 0:
        raise ValueError(f"{first} must have shape [..., d], got {list(mu_p.shape)}")
    batches = []
    for (name, tensor), dims in zip(named.items(), (1, 2, 1, 2), strict=True):
        if tensor.dim() < dims or tensor.shape[-dims:] != (d,) * dims:
            expected = ", ".join(["...", *[str(d)] * dims])
            raise ValueError(f"{name} must have shape [{expected}], got {list(tensor.shape)}")
        batches.append(tensor.shape[: tensor.dim() - dims])
    try:
        torch.broadcast_shapes(*batches)
    except RuntimeError:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in named.items())
        raise ValueError(f"batch shapes do not broadcast: {shapes}") from None


def _cholesky(name: str, cov: Tensor) -> Tensor:
    """The float64 Cholesky factor; ValueError naming a matrix that has none.

    Under ``torch.compile`` and ``torch.func``, which cannot look at values, NaN instead.
    """
    factor, info = try_cholesky(name, cov)
    if only_plain_operations():
        return torch.where(info[..., None, None] > 0, torch.nan, factor)
    if bool((info > 0).any()):
        raise ValueError(
            f"{name} is not positive definite ({int((info > 0).sum())} of {info.numel()} matrices)"
        )
    return factor


def try_cholesky(name: str, cov: Tensor) -> tuple[Tensor, Tensor]:
    """The float64 factors of symmetric matrices, and numbers above 0 where there are none."""
    cov = cov.double()
    if not only_plain_operations():
        asymmetry = (cov - cov.mT).detach().abs().amax((-2, -1))
        if bool((asymmetry > _SYMMETRIC_WITHIN * cov.detach().abs().amax((-2, -1))).any()):
            raise ValueError(f"{name} is not symmetric")
    return torch.linalg.cholesky_ex(0.5 * (cov + cov.mT))


def _whiten(mu_p: Tensor, tril_p: Tensor, mu_q: Tensor, tril_q: Tensor) -> _Whitened:
    def solve(right: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(tril_q, right, upper=False)

    e = solve(tril_p - tril_q)
    diagonal = e.diagonal(dim1=-2, dim2=-1)
    near = diagonal.abs() < 0.5  # elsewhere I + E has lost digits, at the worst all of M
    apart = [tril.diagonal(dim1=-2, dim2=-1).log() for tril in (tril_p, tril_q)]
    log_diagonal = torch.where(
        near, torch.log1p(torch.where(near, diagonal, 0.0)), apart[0] - apart[1]
    )
    difference = mu_p.double() - mu_q.double()
    return _Whitened(e, log_diagonal, solve(difference[..., None]).squeeze(-1))


def _whiten_covariances(mu_p: Tensor, cov_p: Tensor, mu_q: Tensor, cov_q: Tensor) -> _Whitened:
    check_shapes(mu_p=mu_p, cov_p=cov_p, mu_q=mu_q, cov_q=cov_q)
    return _whiten(mu_p, _cholesky("cov_p", cov_p), mu_q, _cholesky("cov_q", cov_q))


def _kl_of_widths(whitened: _Whitened) -> Tensor:
    """|M|_F^2 - d - 2 log det M for the triangular M = I + E; no term is negative."""
    diagonal = expm1_minus_x(2 * whitened.log_diagonal)  # M_ii^2 - 1 - 2 log M_ii
    return diagonal.sum(-1) + torch.tril(whitened.e, -1).square().sum((-2, -1))


def _kl(whitened: _Whitened) -> Tensor:
    return 0.5 * (_kl_of_widths(whitened) + whitened.z.square().sum(-1))


def kl_mvn(mu_p: Tensor, cov_p: Tensor, mu_q: Tensor, cov_q: Tensor) -> Tensor:
    """D(N(mu_p, cov_p) || N(mu_q, cov_q)) of multivariate normals.

    Returns:
        Nats, batch shape, never negative, exactly 0 at p = q; twice differentiable.
    """
    value = _kl(_whiten_covariances(mu_p, cov_p, mu_q, cov_q))
    return value.to(common_dtype(mu_p, cov_p, mu_q, cov_q))


def kl_mvn_from_scale_tril(
    mu_p: Tensor, scale_tril_p: Tensor, mu_q: Tensor, scale_tril_q: Tensor
) -> Tensor:
    """``kl_mvn`` from Cholesky factors: lower triangular [..., d, d], positive diagonal.

    Saves both decompositions, and keeps digits that forming L L^T in float32 would lose. The upper
    triangles are not read.

    Raises:
        ValueError: also a diagonal that is not positive throughout.
    """
    parameters = {
        "mu_p": mu_p,
        "scale_tril_p": scale_tril_p,
        "mu_q": mu_q,
        "scale_tril_q": scale_tril_q,
    }
    check_shapes(**parameters)
    for name in () if only_plain_operations() else ("scale_tril_p", "scale_tril_q"):
        if not bool((parameters[name].diagonal(dim1=-2, dim2=-1) > 0).all()):
            raise ValueError(f"{name} must have a positive diagonal")
    tril_p, tril_q = scale_tril_p.double().tril(), scale_tril_q.double().tril()
    value = _kl(_whiten(mu_p, tril_p, mu_q, tril_q))
    return value.to(common_dtype(*parameters.values()))


def _renyi(whitened: _Whitened, order: float) -> Tensor:
    """In these coordinates the mixed covariance order cov_q + (1 - order) cov_p is I + b G.

    The widths give log det(I + b G) / b - log det(I + G). Both begin with tr G, which is taken out
    of each where it dominates.
    """
    e, log_diagonal, z = whitened
    beta = 1 - order
    if beta == 0:
        return _kl(whitened)
    g = e + e.mT + e @ e.mT  # M M^T - I
    gaps = torch.linalg.eigvalsh(g).clamp(min=-1)
    finite = (1 + beta * gaps > 0).all(-1)
    gaps = torch.where(finite[..., None], gaps, 0.0)
    logs = torch.log1p(beta * gaps)
    close = (gaps.abs() < 1).all(-1)
    small = expm1_minus_x(torch.where(close[..., None], logs, 0.0))
    widths = torch.where(
        close,
        _kl_of_widths(whitened) - small.sum(-1) / beta,
        logs.sum(-1) / beta - 2 * log_diagonal.sum(-1),
    )
    identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    mixed = identity + beta * torch.where(finite[..., None, None], g, 0.0)
    means = order * (z * torch.linalg.solve(mixed, z[..., None]).squeeze(-1)).sum(-1)
    return torch.where(finite, 0.5 * (means + widths), torch.inf)


def renyi_mvn(mu_p: Tensor, cov_p: Tensor, mu_q: Tensor, cov_q: Tensor, order: float) -> Tensor:
    """Renyi divergence D_order(p || q) of multivariate normals (Gil, Alajaji and Linder 2013).

    Args:
        order: positive and finite; 1 is the KL divergence.

    Returns:
        Nats, batch shape; +inf where order cov_q + (1 - order) cov_p is not positive definite,
        which happens for orders above 1 if p is wider than q in some direction. Second derivatives
        need distinct eigenvalues of cov_q^-1 cov_p.

    Raises:
        ValueError: ``order`` is not positive and finite.
    """
    check_order(order)
    value = _renyi(_whiten_covariances(mu_p, cov_p, mu_q, cov_q), order)
    return value.to(common_dtype(mu_p, cov_p, mu_q, cov_q))


def bhattacharyya_mvn(mu_p: Tensor, cov_p: Tensor, mu_q: Tensor, cov_q: Tensor) -> Tensor:
    """Bhattacharyya distance -log of the integral of sqrt(p q); nats, batch shape, symmetric."""
    return 0.5 * renyi_mvn(mu_p, cov_p, mu_q, cov_q, order=0.5)


def squared_hellinger_mvn(mu_p: Tensor, cov_p: Tensor, mu_q: Tensor, cov_q: Tensor) -> Tensor:
    """H**2 = 1 - integral of sqrt(p q), in [0, 1], batch shape; its root is a metric."""
    return -torch.expm1(-bhattacharyya_mvn(mu_p, cov_p, mu_q, cov_q))
