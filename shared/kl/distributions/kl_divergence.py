"""D(p || q) of torch.distributions objects: our own closed forms first, then torch's.

torch.distributions.kl_divergence is right inside the parameter space and wrong on its edges (see
the README). The pairs of ``discrete``, ``continuous`` and ``families`` replace it there; nothing
is registered with torch, whose own function stays as it is.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import kl as torch_kl

from ..conventions import Unit, convert, lifted
from ..samples.estimate import KLEstimate
from .continuous import CONTINUOUS
from .discrete import DISCRETE
from .exact_error import exact_deviation, exceeds
from .families import FAMILIES
from .monte_carlo import draw, log_prob
from .parameters import doubled, floating_tensors, named_parameters, narrow

_ONE_HOT = (td.OneHotCategorical, td.Categorical)


@overload
def kl_divergence(
    p: td.Distribution,
    q: td.Distribution,
    method: Literal["exact"] = "exact",
    *,
    unit: Unit = "nats",
) -> Tensor: ...


@overload
def kl_divergence(
    p: td.Distribution,
    q: td.Distribution,
    method: Literal["monte_carlo"],
    *,
    samples: int,
    unit: Unit = "nats",
) -> KLEstimate: ...


def kl_divergence(
    p: td.Distribution,
    q: td.Distribution,
    method: Literal["exact", "monte_carlo"] = "exact",
    *,
    samples: int | None = None,
    unit: Unit = "nats",
) -> Tensor | KLEstimate:
    """D(p || q), of the broadcast batch shape.

    ``method="exact"`` is a closed form, or NotImplementedError. The closed form is yours where you
    registered one with ``torch.distributions.kl.register_kl``, else ours, else torch's formula in
    float64. All are never negative, have digits where p and q are close, and return float32 for
    half precision. Ours are also right at the edges (probabilities of 0, logits of -inf, total
    counts of 0) and finite in the gradient there: those within a family, and of Bernoulli with
    Poisson, Categorical with OneHotCategorical, ContinuousBernoulli with others, and
    MultivariateNormal with Independent normals.

    ``method="monte_carlo"`` is the mean of log p(x) - log q(x) over ``samples`` draws of p per
    batch element: unbiased, without a gradient, and of either sign when small. A draw outside the
    support of q, or a density of p on a wider interval, makes the mean inf. The standard error of
    discrete distributions counts what was not drawn: it is that of their probabilities, where the
    samples show less, and inf where q excludes what p does not. It draws from torch's global
    generator (torch.manual_seed).

    Args:
        p, q: of one event shape, or a OneHotCategorical and a Categorical (exact only); batch
            shapes broadcast.
        samples: draws, at least 2; for ``method="monte_carlo"`` only, where it is required.
        unit: of the result.

    Returns:
        A tensor, or a ``KLEstimate`` with the standard error.

    Raises:
        ValueError: unknown method or unit; ``samples`` missing, below 2, or given for the exact
            method; shapes that do not fit; TransformedDistributions whose transform is not
            one-to-one; a Monte Carlo ratio of a probability and a density, or draws that underflow.
        NotImplementedError: no closed form for the pair.
    """
    _check_shapes(p, q, one_hot=method == "exact")
    if method == "exact":
        if samples is not None:
            raise ValueError('samples is for method="monte_carlo", method="exact" draws none')
        return convert(_exact(p, q), "nats", unit)
    if method != "monte_carlo":
        raise ValueError(f'method must be "exact" or "monte_carlo", got {method!r}')
    if samples is None or samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    return _estimate(p, q, samples, unit)


def _check_shapes(p: td.Distribution, q: td.Distribution, one_hot: bool) -> None:
    mixed = one_hot and isinstance(p, _ONE_HOT) and isinstance(q, _ONE_HOT)
    if p.event_shape != q.event_shape and not mixed:
        raise ValueError(
            f"p and q must have the same event shape, got {list(p.event_shape)} for p "
            f"and {list(q.event_shape)} for q"
        )
    _batch_shape(p, q)


def _batch_shape(p: td.Distribution, q: td.Distribution) -> torch.Size:
    try:
        return torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    except RuntimeError:
        raise ValueError(
            f"the batch shapes of p, {list(p.batch_shape)}, and q, {list(q.batch_shape)}, "
            "do not broadcast"
        ) from None


def _name(distribution: td.Distribution) -> str:
    return type(distribution).__name__


def _no_closed_form(p: td.Distribution, q: td.Distribution) -> NotImplementedError:
    return NotImplementedError(
        f"no closed form of D(p || q) for p {_name(p)} and q {_name(q)}; "
        'method="monte_carlo" estimates it'
    )


def _look_up(type_p: type, type_q: type) -> tuple[str, str]:
    """Module and name of the function that is registered for the most specific types."""
    registered: Any = torch_kl._dispatch_kl(type_p, type_q)  # not public
    return (
        ("", "") if registered is NotImplemented else (registered.__module__, registered.__name__)
    )


_registered: Callable[[type, type], tuple[str, str]] = torch.compiler.assume_constant_result(
    _look_up
)
"""The same for compilers, which cannot follow torch's comparison of types."""


def _exact(p: Any, q: Any) -> Tensor:
    module, name = _registered(type(p), type(q))
    if module not in ("", torch_kl.__name__):  # yours
        return torch_kl._dispatch_kl(type(p), type(q))(p, q)
    for type_p, type_q, formula in (*DISCRETE, *CONTINUOUS, *FAMILIES):
        if isinstance(p, type_p) and isinstance(q, type_q):
            return formula(p, q)
    if isinstance(p, td.Independent) and isinstance(q, td.Independent):
        return _independent(p, q)
    if name == "_kl_transformed_transformed":
        return _transformed(p, q)
    if name == "_kl_expfamily_expfamily":
        return _exponential_family(p, q)
    if not name:
        raise _no_closed_form(p, q)
    registered = getattr(torch_kl, name)
    # torch's masks of infinite cells have one argument's shape, its results sometimes too
    value = lifted(registered(*_expanded(doubled(p), doubled(q))))
    return narrow(value, *named_parameters(p).values(), *named_parameters(q).values())


def _expanded(p: Any, q: Any) -> tuple[Any, Any]:
    shape = _batch_shape(p, q)
    return (
        p if p.batch_shape == shape else p.expand(shape),
        q if q.batch_shape == shape else q.expand(shape),
    )


def _independent(p: Any, q: Any) -> Tensor:
    """The sum over the reinterpreted dimensions."""
    if p.reinterpreted_batch_ndims != q.reinterpreted_batch_ndims:
        raise _no_closed_form(p, q)
    _check_shapes(p.base_dist, q.base_dist, one_hot=False)
    value = _exact(p.base_dist, q.base_dist)
    batch = value.dim() - p.reinterpreted_batch_ndims
    return value.flatten(batch).sum(-1) if p.reinterpreted_batch_ndims else value


def _transformed(p: Any, q: Any) -> Tensor:
    """The D of the bases, which a common one-to-one transform leaves as it is."""
    if p.transforms != q.transforms:
        raise _no_closed_form(p, q)
    folded = isinstance(p, td.HalfCauchy) and isinstance(q, td.HalfCauchy)  # about the centre
    if not folded:
        for transform in p.transforms:
            if not transform.bijective:
                raise ValueError(
                    f"p and q are transformed by {type(transform).__name__}, which is not "
                    "one-to-one (bijective): it merges outcomes, and the divergence of the base "
                    "distributions is only an upper bound"
                )
    return _exact(p.base_dist, q.base_dist)


def _exponential_family(p: td.ExponentialFamily, q: td.ExponentialFamily) -> Tensor:
    """The Bregman divergence A(q) - A(p) - <A'(p), q - p> of the log-normaliser.

    torch detaches the parameters of p on the way and thereby loses their gradient.
    """
    if type(p) is not type(q):
        raise _no_closed_form(p, q)
    p, q = _expanded(p, q)
    needs_gradient = torch.is_grad_enabled()
    with torch.enable_grad():
        # copies: a parameter computed from another must not carry that one's derivative
        parameters = [theta.clone() for theta in p._natural_params]
        needs_gradient = needs_gradient and any(
            theta.requires_grad for theta in (*parameters, *q._natural_params)
        )
        natural = [theta if theta.requires_grad else theta.requires_grad_() for theta in parameters]
        log_normaliser = p._log_normalizer(*natural)
        means = torch.autograd.grad(log_normaliser.sum(), natural, create_graph=True)
        value = q._log_normalizer(*q._natural_params) - log_normaliser
        for theta_p, theta_q, mean in zip(natural, q._natural_params, means, strict=True):
            term = (theta_q - theta_p) * mean
            value = value - term.reshape(*value.shape, -1).sum(-1)
    return value if needs_gradient else value.detach()


@torch.no_grad()
def _estimate(p: Any, q: Any, samples: int, unit: Unit) -> KLEstimate:
    """The mean of log p(x) - log q(x), +inf off the support of q, and its standard error.

    Of discrete p the error is the known one, where that is larger than what the draws show.
    """
    if p.support.is_discrete != q.support.is_discrete:
        raise ValueError(
            f"{_name(p)} (p) and {_name(q)} (q) are not both discrete or both continuous: the "
            "ratio of a probability and a density is not a number, and D(p || q) is infinite"
        )
    p, q = _expanded(p, q)
    x = draw(p, samples)
    inside = q.support.check(x)
    events = inside.reshape(*inside.shape, *[1] * len(q.event_shape))
    log_q = log_prob(q, torch.where(events, x, q.sample((samples,))))
    terms = log_prob(p, x) - torch.where(inside, log_q, -torch.inf)
    if bool(terms.isnan().any()):
        raise ValueError(
            f"{int(terms.isnan().sum())} draws of p, {_name(p)}, have no log-probability: p is too "
            'near the edge of its support for samples; method="exact" draws none'
        )
    terms = torch.where(exceeds(p, q), torch.inf, terms)
    estimate = KLEstimate.from_terms(convert(terms, "nats", unit))
    deviation = exact_deviation(p, q)
    if deviation is not None:
        known = convert(deviation, "nats", unit) / math.sqrt(samples)
        estimate = estimate._replace(stderr=estimate.stderr.fmax(known.to(estimate.stderr)))
    tensors = (*floating_tensors(p), *floating_tensors(q))
    mean, stderr, n, minimum = estimate
    return KLEstimate(
        narrow(mean, *tensors), narrow(stderr, *tensors), n, narrow(minimum, *tensors)
    )
