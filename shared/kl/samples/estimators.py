"""KL from samples: values, losses whose gradient is the one named, and exact sums where possible.

An unbiased estimate of D(p || q) need not have the gradient of D(p || q) when it is differentiated:
the law of the samples depends on p's parameters too (Tang and Munos 2025, arXiv 2506.09477). So
there are two families here. ``log_ratio_estimator`` gives values, to be reported or subtracted from
a reward; ``kl_loss``, ``sequence_kl_surrogate`` and ``rao_blackwell_kl`` with ``logp`` are
differentiated. In nats unless a ``unit`` is taken; half precision becomes float32.

Everything averaged here needs samples of exactly the p whose log-probability is given: top-k, a
temperature or a least length at sampling time, and padding counted as text, make estimates wrong,
k1 often negative.
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..categorical.discrete import kl_from_logits
from ..conventions import Reduction, Unit, broadcast, convert, only_plain_operations, reduce
from ..gaussian.diagonal import expm1_minus_x

Kind = Literal["k1", "k2", "k3"]
Gradient = Literal["reverse", "forward"]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _log_ratio(logp: Tensor, name: str, other: Tensor, mask: Tensor | None) -> Tensor:
    """log p - other, and 0 where the mask is False, whatever stands there."""
    logp, other = broadcast("logp", logp, name, other)
    return reduce(logp - other, mask)


def log_ratio_estimator(
    logp: Tensor,
    logq: Tensor,
    kind: Kind = "k3",
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
    unit: Unit = "nats",
) -> Tensor:
    """Terms whose mean over samples x ~ p estimates D(p || q) (Schulman 2020, joschu.net).

    With r = log p(x) - log q(x):

    - ``"k1"``: r. Unbiased, of either sign, noisy when p and q are close.
    - ``"k2"``: r^2 / 2. Biased, small when p and q are close; never negative.
    - ``"k3"``: exp(-r) - 1 + r. Unbiased where q's mass lies in p's support; never negative. Its
      variance is infinite when p's tails are much lighter than q's: see ``summarise_terms``.

    To report or to use in a reward, not as a loss: the gradient of the mean of k1 is zero in
    expectation, that of k3 belongs to D(q || p). ``kl_loss`` is the loss.

    Args:
        logp, logq: log p(x) and log q(x) at samples of p; shapes broadcast. k3 overflows to inf
            where log q - log p exceeds 88 (float32).
        mask, reduction: see ``conventions.reduce``; masked positions may hold NaN.

    Raises:
        ValueError: an unknown kind, unit or reduction; shapes or types that do not fit.
    """
    _check_choice("kind", kind, get_args(Kind))
    ratio = _log_ratio(logp, "logq", logq, mask)
    if kind == "k1":
        terms = ratio
    elif kind == "k2":
        terms = 0.5 * ratio.square()
    else:
        terms = expm1_minus_x(-ratio)
    return reduce(convert(terms, "nats", unit), mask, reduction)


class _ValueWithGradient(torch.autograd.Function):
    """value - surrogate.detach() + surrogate, without the NaN of inf - inf."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, surrogate: Tensor) -> Tensor:  # noqa: ARG004
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # noqa: ARG004
        return None, grad


def _value_with_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    if only_plain_operations():
        value, held = value.detach(), surrogate.detach()
        return torch.where(held.isfinite(), value + (surrogate - held), value)
    result: Tensor = _ValueWithGradient.apply(value.detach(), surrogate)
    return result


def kl_loss(
    logp: Tensor,
    logq: Tensor,
    grad: Gradient = "reverse",
    *,
    logp_behaviour: Tensor | None = None,
    max_weight: float = math.inf,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    """A loss from samples: its value estimates D(p || q), its gradient is the one named.

    p is the policy that is trained, q the reference, which gets no gradient. With
    r = log p - log q and w = p / behaviour (held fixed; 1 for samples of p), a term is

        value.detach() + surrogate - surrogate.detach(),   value = w (exp(-r) - 1 + r)

    - ``grad="reverse"``: surrogate w r^2 / 2, whose gradient w r grad log p is that of D(p || q)
      in expectation, because E_p grad log p = 0.
    - ``grad="forward"``: surrogate w (exp(-r) - 1 + r), whose gradient w (1 - exp(-r)) grad log p
      is that of D(q || p), because E_p (q / p) grad log p = E_q grad log p. This is what a k3 loss
      trains (GRPO's KL term).

    Exact for one decision. Of a sequence, given as [batch, time], values summed over time are
    unbiased and the gradient is that of each token's divergence at prefixes held as they came:
    ``sequence_kl_surrogate`` adds the effect on later prefixes.

    Args:
        logp: log p(x) of the samples, with a graph; logq: log q(x). Shapes broadcast.
        logp_behaviour: log-probabilities of the policy that sampled, if it was not p. No gradient
            flows through the weights. Where p(x) = 0 the term and its gradient are 0.
        max_weight: truncate w there, which bounds the variance and biases value and gradient.
        mask, reduction: see ``conventions.reduce``; masked positions may hold NaN.

    Raises:
        ValueError: an unknown ``grad`` or reduction; shapes or types that do not fit; a
            ``max_weight`` that is not positive or comes without ``logp_behaviour``.
    """
    _check_choice("grad", grad, get_args(Gradient))
    if not max_weight > 0:
        raise ValueError(f"max_weight must be positive, got {max_weight}")
    if logp_behaviour is None and max_weight < math.inf:
        raise ValueError("max_weight needs logp_behaviour")
    ratio = _log_ratio(logp, "logq", logq.detach(), mask)
    weight = torch.ones_like(ratio)
    if logp_behaviour is not None:
        drift = _log_ratio(logp.detach(), "logp_behaviour", logp_behaviour.detach(), mask)
        weight = drift.exp().clamp(max=max_weight)
        ratio = torch.where(weight > 0, ratio, 0.0)
    k3 = weight * expm1_minus_x(-ratio)
    surrogate = weight * 0.5 * ratio.square() if grad == "reverse" else k3
    return reduce(_value_with_gradient(k3, surrogate), mask, reduction)


def _to_go(values: Tensor) -> Tensor:
    """Sums over this and all later positions of the last dimension."""
    return values.flip(-1).cumsum(-1).flip(-1)


def sequence_kl_surrogate(logp: Tensor, logq: Tensor, mask: Tensor | None = None) -> Tensor:
    """D(p || q) of whole sequences sampled from p, with the whole gradient.

    The value is the sum of k3 over tokens: unbiased, never negative. The gradient is
    sum_t grad log p_t sum_{s >= t} r_s (Tang and Munos 2025): what a token does to later log-ratios
    counts, which the sum of token losses leaves out.

    Args:
        logp, logq: [..., time] log-probabilities of the sampled tokens; logq gets no gradient.
        mask: bool, True for tokens of the response, broadcastable; others may hold NaN.

    Returns:
        Nats, [...]: one term per sequence.
    """
    ratio = _log_ratio(logp, "logq", logq.detach(), mask)
    surrogate = (ratio * _to_go(ratio.detach())).sum(-1)
    return _value_with_gradient(expm1_minus_x(-ratio.detach()).sum(-1), surrogate)


def rao_blackwell_kl(
    p_logits: Tensor,
    q_logits: Tensor,
    mask: Tensor | None = None,
    *,
    logp: Tensor | None = None,
    unit: Unit = "nats",
) -> Tensor:
    """D(p || q) of sequences: exact over the vocabulary at every sampled prefix, summed over time.

    Unbiased, never negative, and of no more variance than k1 (Amini, Vieira and Cotterell 2025,
    arXiv 2504.10637).

    Args:
        p_logits, q_logits: [..., time, vocabulary] at the prefixes of sequences sampled from p.
        mask: bool, broadcastable with [..., time], True for tokens of the response.
        logp: log p of the sampled tokens, [..., time]. Without it the gradient holds the prefixes
            fixed; with it, it is the whole gradient of D(p || q) in p, which adds
            sum_t grad log p_t sum_{s > t} KL_s.

    Returns:
        [...]: one term per sequence.

    Raises:
        ValueError: as ``kl_from_logits``; no dimension of time.
    """
    if p_logits.dim() < 2:
        raise ValueError(f"p_logits must be [..., time, vocabulary], got {list(p_logits.shape)}")
    kl = kl_from_logits(p_logits, q_logits, mask=mask)
    total = kl.sum(-1)
    if logp is not None:
        later = (reduce(logp, mask)[..., :-1] * _to_go(kl.detach())[..., 1:]).sum(-1)
        total = _value_with_gradient(total, total + later)
    return convert(total, "nats", unit)


def reparameterized_kl(
    p: Distribution, q: Distribution, n: int, *, sticking_the_landing: bool = False
) -> Tensor:
    """log p(x) - log q(x) at n samples x = x(parameters, noise) of p, differentiable in both.

    Value and gradient are unbiased for D(p || q) and its gradient (Kingma and Welling 2013).

    Args:
        sticking_the_landing: leave out the gradient of log p with respect to p's parameters at
            fixed x, which is zero in expectation (Roeder et al. 2017): at p = q the gradient
            of every single term is then 0. Such a result is differentiable once.

    Returns:
        Nats, [n, batch shape]; of either sign.

    Raises:
        ValueError: p cannot be reparameterised; n below 1; the event shapes differ.
    """
    if not p.has_rsample:
        raise ValueError(f"p must have rsample, {type(p).__name__} has not")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if p.event_shape != q.event_shape:
        shapes = f"{list(p.event_shape)} and {list(q.event_shape)}"
        raise ValueError(f"p and q must have one event shape, got {shapes}")
    x = p.rsample((n,))
    logp = p.log_prob(x)
    if sticking_the_landing:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(p.log_prob(at).sum(), at)
        path = (slope.detach() * x).reshape(*logp.shape, -1).sum(-1)
        logp = _value_with_gradient(logp, path)
    return logp - q.log_prob(x)
