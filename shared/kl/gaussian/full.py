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

from typing import Any, NamedTuple

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


def _common_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _check_shapes(**named: Tensor) -> None:
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
    cov = cov.double()
    if only_plain_operations():
        factor, info = torch.linalg.cholesky_ex(0.5 * (cov + cov.mT))
        return torch.where(info[..., None, None] > 0, torch.nan, factor)
    asymmetry = (cov - cov.mT).detach().abs().amax((-2, -1))
    if bool((asymmetry > _SYMMETRIC_WITHIN * cov.detach().abs().amax((-2, -1))).any()):
        raise ValueError(f"{name} is not symmetric")
    factor, info = torch.linalg.cholesky_ex(0.5 * (cov + cov.mT))
    if bool((info > 0).any()):
        raise ValueError(
            f"{name} is not positive definite ({int((info > 0).sum())} of {info.numel()} matrices)"
        )
    return factor


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
    _check_shapes(mu_p=mu_p, cov_p=cov_p, mu_q=mu_q, cov_q=cov_q)
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
    return value.to(_common_dtype(mu_p, cov_p, mu_q, cov_q))


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
    _check_shapes(**parameters)
    for name in () if only_plain_operations() else ("scale_tril_p", "scale_tril_q"):
        if not bool((parameters[name].diagonal(dim1=-2, dim2=-1) > 0).all()):
            raise ValueError(f"{name} must have a positive diagonal")
    tril_p, tril_q = scale_tril_p.double().tril(), scale_tril_q.double().tril()
    value = _kl(_whiten(mu_p, tril_p, mu_q, tril_q))
    return value.to(_common_dtype(*parameters.values()))


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
    return value.to(_common_dtype(mu_p, cov_p, mu_q, cov_q))


def bhattacharyya_mvn(mu_p: Tensor, cov_p: Tensor, mu_q: Tensor, cov_q: Tensor) -> Tensor:
    """Bhattacharyya distance -log of the integral of sqrt(p q); nats, batch shape, symmetric."""
    return 0.5 * renyi_mvn(mu_p, cov_p, mu_q, cov_q, order=0.5)


def squared_hellinger_mvn(mu_p: Tensor, cov_p: Tensor, mu_q: Tensor, cov_q: Tensor) -> Tensor:
    """H**2 = 1 - integral of sqrt(p q), in [0, 1], batch shape; its root is a metric."""
    return -torch.expm1(-bhattacharyya_mvn(mu_p, cov_p, mu_q, cov_q))


def _best_rotation(a: Tensor, b: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(b.mT @ a)
    return left @ right


def _procrustes(a: Tensor, b: Tensor) -> Tensor:
    if only_plain_operations():  # here u has its derivative, NaN at equal singular values
        return (a - b @ _best_rotation(a, b)).square().sum((-2, -1))
    value: Tensor = _Procrustes.apply(a, b)
    return value


class _Procrustes(torch.autograd.Function):
    """min over orthogonal U of |A - B U|_F^2, whose gradient needs no derivative of the best U."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        u = _best_rotation(a, b)
        residual = a - b @ u
        ctx.save_for_backward(residual, u)
        return residual.square().sum((-2, -1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():  # u, a constant here, is none for a second derivative
            raise RuntimeError("squared_wasserstein2_mvn is differentiable only once")
        residual, u = ctx.saved_tensors
        scaled = 2 * grad[..., None, None] * residual
        return scaled, -scaled @ u.mT


def squared_wasserstein2_mvn(mu_p: Tensor, cov_p: Tensor, mu_q: Tensor, cov_q: Tensor) -> Tensor:
    """W2**2 = |mu_p - mu_q|^2 + tr(cov_p + cov_q - 2 (cov_q^1/2 cov_p cov_q^1/2)^1/2).

    The Bures-Wasserstein distance squared (Givens and Shortt 1984, Proposition 7), computed as the
    least |L_p - L_q U|_F^2 over rotations U (Bhatia et al. 2019, Theorem 1): a sum of squares,
    where the trace formula subtracts nearly equal numbers.

    Returns:
        Squared units of x (not nats), batch shape; differentiable once: a backward pass
        with create_graph=True raises RuntimeError.
    """
    _check_shapes(mu_p=mu_p, cov_p=cov_p, mu_q=mu_q, cov_q=cov_q)
    batch = torch.broadcast_shapes(cov_p.shape, cov_q.shape)
    tril_p = _cholesky("cov_p", cov_p).expand(batch)
    tril_q = _cholesky("cov_q", cov_q).expand(batch)
    means = (mu_p.double() - mu_q.double()).square().sum(-1)
    value = means + _procrustes(tril_p, tril_q)
    return value.to(_common_dtype(mu_p, cov_p, mu_q, cov_q))
