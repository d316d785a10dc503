"""Closed forms for diagonal Gaussians, per dimension, in nats.

Sum the last dimension yourself: a diagonal Gaussian's KL is the sum over its dimensions, and
keeping them apart shows which latents are used. The same holds for Renyi, Bhattacharyya and the
squared Wasserstein distance; the Hellinger distance alone is not a sum over dimensions.
"""

import math

import torch
from torch import Tensor

from ..conventions import widened
from .closed_form import closed_form, finite

_SERIES_BELOW = 0.25  # where expm1(x) - x cancels; the series below is then right to rounding
_SERIES_TERMS = 8  # 0.25**7 / 9! * 2 < 1e-9, below the last digit of float32
_SERIES_TERMS_FLOAT64 = 14  # 0.25**12 / 14! * 2 < 1e-17
_FAR = 30.0  # nats between log-variances; exp does not overflow below


def _series(x: Tensor) -> Tensor:
    """exp(x) - 1 - x for small x."""
    terms = _SERIES_TERMS_FLOAT64 if x.dtype == torch.float64 else _SERIES_TERMS
    series = torch.full_like(x, 1.0 / math.factorial(terms))
    for n in range(terms - 1, 1, -1):
        series = series * x + 1.0 / math.factorial(n)
    return x.square() * series


def _largest_exponent(x: Tensor) -> float:
    """exp of it does not overflow."""
    return math.log(torch.finfo(x.dtype).max) - 0.1


_LARGEST = 700.0  # exp of it is finite in float64


def _expm1_minus_x(x: Tensor) -> Tensor:
    near, overflow = x.abs() < _SERIES_BELOW, x > _largest_exponent(x)
    far = torch.where(near | overflow, 0.0, x)
    direct = torch.where(overflow, torch.inf, torch.expm1(far) - far)
    return torch.where(near, _series(torch.where(near, x, 0.0)), direct)


def _expm1_minus_x_in_float64(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    wide = x.clamp(max=_LARGEST).double()
    expm1 = torch.expm1(wide)
    return (expm1 - wide).float(), (finite(expm1),)


def expm1_minus_x(x: Tensor) -> Tensor:
    """exp(x) - 1 - x without cancellation and never negative; any shape, any float type."""
    return closed_form(_expm1_minus_x_in_float64, _expm1_minus_x, x)


def _standardised_square(difference: Tensor, logvar: Tensor) -> Tensor:
    """difference**2 / exp(logvar), and 0 (not 0 * inf) at a difference of 0.

    The inverse standard deviation is applied as two factors that cannot overflow, so that neither
    they nor their derivatives are infinite where the quotient is not.
    """
    largest = math.log(torch.finfo(logvar.dtype).max) - 0.1
    factor = torch.exp((-0.25 * logvar).clamp(max=largest))
    return (difference * factor * factor).square()


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) per dimension.

    Kingma and Welling 2013, Appendix B, written as (mu**2 + exp(v) - 1 - v) / 2 with
    ``exp(v) - 1 - v`` computed without cancellation: the usual form is 100 % wrong in float32 at a
    log-variance of 1e-4.

    Args:
        mu: means, any shape.
        logvar: log-variances, broadcastable with ``mu``.

    Returns:
        Nats, broadcast shape, never negative; ``inf`` where ``exp(logvar)`` overflows.
    """
    mu, logvar = widened(mu=mu, logvar=logvar)
    return closed_form(_kl_standard_in_float64, _kl_standard, mu, logvar)


def _kl_standard(mu: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mu.square() + expm1_minus_x(logvar))


def _kl_standard_in_float64(mu: Tensor, logvar: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    wide = logvar.clamp(max=_LARGEST).double()
    expm1 = torch.expm1(wide)
    value = torch.addcmul((expm1 - wide).float(), mu, mu).mul_(0.5)
    return value, (mu, finite(expm1).mul_(0.5))


def kl_normal(mu_p: Tensor, logvar_p: Tensor, mu_q: Tensor, logvar_q: Tensor) -> Tensor:
    """KL(N(mu_p, exp(logvar_p)) || N(mu_q, exp(logvar_q))) per dimension.

    Args:
        mu_p, logvar_p: mean and log-variance of the first argument p, any shape.
        mu_q, logvar_q: of the second argument q, broadcastable; finite (float32: logvar_q > -350).

    Returns:
        Nats, broadcast shape, never negative; ``inf`` where the value overflows.
    """
    mu_p, logvar_p, mu_q, logvar_q = widened(
        mu_p=mu_p, logvar_p=logvar_p, mu_q=mu_q, logvar_q=logvar_q
    )
    return closed_form(_kl_normal_in_float64, _kl_normal, mu_p, logvar_p, mu_q, logvar_q)


def _kl_normal(mu_p: Tensor, logvar_p: Tensor, mu_q: Tensor, logvar_q: Tensor) -> Tensor:
    standardised = _standardised_square(mu_p - mu_q, logvar_q)
    return 0.5 * (standardised + expm1_minus_x(logvar_p - logvar_q))


def _kl_normal_in_float64(
    mu_p: Tensor, logvar_p: Tensor, mu_q: Tensor, logvar_q: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    ratio = (logvar_p - logvar_q).clamp_(max=_LARGEST).double()
    gap = (mu_p - mu_q).double()
    precision = (
        logvar_q.double().mul_(-1 / math.log(2)).clamp_(max=1000.0).exp2_()
    )  # as exp, faster
    slope = precision.mul_(gap)
    square = gap.mul_(slope)
    expm1 = torch.expm1(ratio)
    value = expm1.sub(ratio).add_(square).mul_(0.5).float()
    to_mu, to_logvar = finite(slope), finite(expm1).mul_(0.5)
    return value, (to_mu, to_logvar, to_mu.neg(), finite(square.add_(expm1)).mul_(-0.5))


def kl_normal_gradient(
    mu_p: Tensor, logvar_p: Tensor, mu_q: Tensor, logvar_q: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives of ``kl_normal`` with respect to mu_q and logvar_q, without autograd.

    (mu_q - mu_p) / var_q and (1 - var_p / var_q - (mu_q - mu_p)**2 / var_q) / 2, the latter
    without cancellation between the variances.

    Args:
        mu_p, logvar_p, mu_q, logvar_q: as in ``kl_normal``; float32: logvar_q > -177.

    Returns:
        Both per dimension, the first in the shape of the means, the second in that of all four:
        a sum over what an argument was broadcast along is yours.
    """
    mu_p, logvar_p, mu_q, logvar_q = widened(
        mu_p=mu_p, logvar_p=logvar_p, mu_q=mu_q, logvar_q=logvar_q
    )
    precision = torch.exp(-0.5 * logvar_q)
    standardised = (mu_q - mu_p) * precision
    widths = torch.expm1(logvar_p - logvar_q)
    return standardised * precision, -0.5 * (standardised.square() + widths)


def kl_normal_of_scales(mu_p: Tensor, scale_p: Tensor, mu_q: Tensor, scale_q: Tensor) -> Tensor:
    """The same of standard deviations: (((mu_p - mu_q) / scale_q)**2 + r**2 - 1 - log r**2) / 2.

    With r = scale_p / scale_q = 1 + t, r**2 - 1 is t (2 + t) and |log r| is log(1 + the difference
    of the scales over the smaller one).
    """
    tensors = widened(mu_p=mu_p, scale_p=scale_p, mu_q=mu_q, scale_q=scale_q)
    return closed_form(_kl_of_scales_in_float64, _kl_of_scales, *tensors)


def _kl_of_scales(mu_p: Tensor, scale_p: Tensor, mu_q: Tensor, scale_q: Tensor) -> Tensor:
    tensors = [tensor.double() for tensor in (mu_p, scale_p, mu_q, scale_q)]
    mu_p, scale_p, mu_q, scale_q = tensors
    standardised = (mu_p - mu_q) / scale_q
    log_ratio = 2 * scale_p.log() - 2 * scale_q.log()
    return 0.5 * (standardised.square() + _expm1_minus_x(log_ratio))


def _kl_of_scales_in_float64(
    mu_p: Tensor, scale_p: Tensor, mu_q: Tensor, scale_q: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    precision = scale_q.double().reciprocal_()
    z = (mu_p - mu_q).double().mul_(precision)
    gap = (scale_p - scale_q).double()
    t = gap * precision
    squares = t.square().add_(t, alpha=2)  # r^2 - 1
    log_ratio = gap.abs().div_(torch.minimum(scale_p, scale_q)).log1p_().copysign_(gap)
    value = z.square().add_(squares).mul_(0.5).sub_(log_ratio).float()
    to_mu = z.mul(precision)
    squares_z = z.square_().add_(squares)
    to_scale_p = squares.div_(scale_p)  # r (r - 1 / r) / scale_p
    to_scale_q = squares_z.mul_(precision).neg_()
    return value, tuple(finite(each) for each in (to_mu, to_scale_p, -to_mu, to_scale_q))


def normal_log_prob(x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(x; mu, exp(logvar)) per dimension, in nats; shapes broadcast."""
    x, mu, logvar = widened(x=x, mu=mu, logvar=logvar)
    return -0.5 * (_standardised_square(x - mu, logvar) + logvar + math.log(2 * math.pi))


def renyi_normal(
    mu_p: Tensor, logvar_p: Tensor, mu_q: Tensor, logvar_q: Tensor, order: float
) -> Tensor:
    """Renyi divergence D_order(p || q) of two normals, per dimension (Gil et al. 2013).

    With v* = order var_q + (1 - order) var_p it is order (mu_p - mu_q)**2 / (2 v*) +
    log(var_p**(1 - order) var_q**order / v*) / (2 (order - 1)), written so that nothing cancels
    where the variances are close.

    Args:
        mu_p, logvar_p, mu_q, logvar_q: as in ``kl_normal``.
        order: positive and finite; 1 is the KL divergence.

    Returns:
        Nats, broadcast shape; ``inf`` where v* is not positive, which happens for orders above 1
        if p is the wider of the two.

    Raises:
        ValueError: ``order`` is not positive and finite.
    """
    check_order(order)
    mu_p, logvar_p, mu_q, logvar_q = widened(
        mu_p=mu_p, logvar_p=logvar_p, mu_q=mu_q, logvar_q=logvar_q
    )
    ratio = logvar_p - logvar_q
    finite = (1 - order) * torch.expm1(ratio) > -1
    ratio = torch.where(finite, ratio, 0.0)
    mixed = _log_mixed(ratio, order)
    means = order * _standardised_square(mu_p - mu_q, logvar_q + mixed)
    return torch.where(finite, 0.5 * (means + _renyi_of_widths(ratio, mixed, order)), torch.inf)


def check_order(order: float) -> None:
    """ValueError unless the order of a Renyi divergence of Gaussians is positive and finite."""
    if not 0 < order < math.inf:
        raise ValueError(f"order must be positive and finite, got {order}")


def _log_mixed(ratio: Tensor, order: float) -> Tensor:
    """log(order + (1 - order) exp(ratio)) = log(v* / var_q)."""
    beta = 1 - order
    if beta <= 0:  # finite only where beta exp(ratio) is moderate
        return torch.log1p(beta * torch.expm1(ratio))
    far = ratio > _FAR
    near = torch.log1p(beta * torch.expm1(torch.where(far, 0.0, ratio)))
    start = torch.full_like(ratio, math.log(order))
    return torch.where(far, torch.logaddexp(start, ratio + math.log(beta)), near)


def _renyi_of_widths(ratio: Tensor, mixed: Tensor, order: float) -> Tensor:
    """mixed / (1 - order) - ratio: both begin with exp(ratio) - 1, taken out where it dominates."""
    beta = 1 - order
    if beta == 0:
        return expm1_minus_x(ratio)
    close = ratio.abs() < 1
    small = expm1_minus_x(torch.where(close, ratio, 0.0))
    rest = expm1_minus_x(torch.where(close, mixed, 0.0)) / beta
    return torch.where(close, small - rest, mixed / beta - ratio)


def bhattacharyya_normal(mu_p: Tensor, logvar_p: Tensor, mu_q: Tensor, logvar_q: Tensor) -> Tensor:
    """Bhattacharyya distance -log of the integral of sqrt(p q), per dimension; symmetric.

    Half the Renyi divergence of order 1/2. Arguments and shapes as in ``kl_normal``; nats.
    """
    return 0.5 * renyi_normal(mu_p, logvar_p, mu_q, logvar_q, order=0.5)


def squared_hellinger_normal(
    mu_p: Tensor, logvar_p: Tensor, mu_q: Tensor, logvar_q: Tensor
) -> Tensor:
    """H**2 = 1 - integral of sqrt(p q), in [0, 1], of two diagonal Gaussians [..., d] -> [...].

    Not a sum over dimensions (1 - H**2 is a product), so the last dimension is the Gaussians'.
    """
    return -torch.expm1(-bhattacharyya_normal(mu_p, logvar_p, mu_q, logvar_q).sum(-1))


def squared_wasserstein2_normal(
    mu_p: Tensor, logvar_p: Tensor, mu_q: Tensor, logvar_q: Tensor
) -> Tensor:
    """W2**2 = (mu_p - mu_q)**2 + (sd_p - sd_q)**2, per dimension; arguments as in ``kl_normal``.

    In squared units of x, not nats; the sum over dimensions is W2**2 of the diagonal Gaussians.
    """
    mu_p, logvar_p, mu_q, logvar_q = widened(
        mu_p=mu_p, logvar_p=logvar_p, mu_q=mu_q, logvar_q=logvar_q
    )
    # sd_p - sd_q, without cancellation
    widths = 2 * torch.exp(0.25 * (logvar_p + logvar_q)) * torch.sinh(0.25 * (logvar_p - logvar_q))
    return (mu_p - mu_q).square() + widths.square()
