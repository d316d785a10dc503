"""The Wasserstein distance between Gaussians with full covariance."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..conventions import only_plain_operations
from .full import check_shapes, common_dtype, try_cholesky


def _root(name: str, cov: Tensor) -> Tensor:
    """R [..., d, d] in float64 with R R^T = cov: the Cholesky factor, or of singular covariances
    the symmetric root; ValueError naming a matrix that is not positive semi-definite."""
    factor, info = try_cholesky(name, cov)
    if only_plain_operations():
        return torch.where(info[..., None, None] > 0, torch.nan, factor)
    if not bool((info > 0).any()):
        return factor
    if not bool(cov.isfinite().all()):
        raise ValueError(f"{name} has values that are not finite")
    rounding = 100 * torch.finfo(cov.dtype).eps
    root, least = _SymmetricRoot.apply(0.5 * (cov + cov.mT).double())
    if not bool((least >= -rounding * cov.shape[-1]).all()):  # NaN is not
        raise ValueError(
            f"{name} is not positive semi-definite: an eigenvalue is {least.min().item():g} times "
            "the largest"
        )
    return root


class _SymmetricRoot(torch.autograd.Function):
    """The root of a positive semi-definite matrix, and its least eigenvalue over the largest.

    dC = R dR + dR R (a Sylvester equation), in the eigenvectors of C entry by entry; the derivative
    is 0 in directions in which C is 0, where that of a root is infinite.
    """

    @staticmethod
    def forward(ctx: Any, cov: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(cov)
        most = values.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(cov.dtype).tiny)
        roots = torch.where(values > 1e-14 * most, values, 0.0).sqrt()
        ctx.save_for_backward(roots, vectors)
        least = (values[..., :1] / most).squeeze(-1)
        ctx.mark_non_differentiable(least)
        return (vectors * roots[..., None, :]) @ vectors.mT, least

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Tensor:
        roots, vectors = ctx.saved_tensors
        sums = roots[..., :, None] + roots[..., None, :]
        turned = vectors.mT @ grad @ vectors
        turned = torch.where(sums > 0, turned / torch.where(sums > 0, sums, 1.0), 0.0)
        return vectors @ turned @ vectors.mT


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
    where the trace formula subtracts nearly equal numbers. The covariances may be singular, as
    those of fewer samples than dimensions are; of features of pictures this is the Frechet
    inception distance (Heusel et al. 2017, eq. 6).

    Returns:
        Squared units of x (not nats), batch shape; differentiable once: a backward pass
        with create_graph=True raises RuntimeError. The derivative to a singular covariance is 0 in
        the directions in which it has no extent.

    Raises:
        ValueError: a covariance that is not symmetric or not positive semi-definite.
    """
    check_shapes(mu_p=mu_p, cov_p=cov_p, mu_q=mu_q, cov_q=cov_q)
    batch = torch.broadcast_shapes(cov_p.shape, cov_q.shape)
    root_p, root_q = _root("cov_p", cov_p).expand(batch), _root("cov_q", cov_q).expand(batch)
    means = (mu_p.double() - mu_q.double()).square().sum(-1)
    value = means + _procrustes(root_p, root_q)
    return value.to(common_dtype(mu_p, cov_p, mu_q, cov_q))
