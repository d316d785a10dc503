"""Parameters of torch.distributions, as they were given and in float64."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions.utils import probs_to_logits

from ..conventions import only_plain_operations


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Broadcast float64 copies."""
    return tuple(torch.broadcast_tensors(*(tensor.double() for tensor in tensors)))


def narrow(value: Tensor, *parameters: Tensor) -> Tensor:
    """The value in the parameters' common precision, float32 at least."""
    dtype = torch.float32
    for parameter in parameters:
        dtype = torch.promote_types(dtype, parameter.dtype)
    return value.to(dtype)


class Parameters(NamedTuple):
    is_logits: bool
    parameter: Tensor


def parameters_of(distribution: Any) -> Parameters:
    """The parameter the distribution was made from, probabilities or logits.

    The other one is derived and clamped: a probability of 1e-12 becomes 1.2e-7 on its way to a
    float32 logit, a logit of 20 becomes a probability of exactly 1.
    """
    made = vars(distribution)
    parameter = made.get("_param")
    if parameter is None:  # Geometric; the derived one is stored second
        parameter = made[next(name for name in made if name in ("probs", "logits"))]
        logits = made.get("logits")
        if logits is not None and parameter is not logits and not _follow(logits, parameter):
            parameter = logits  # expand() has stored both in another order
    return Parameters(parameter is not made.get("probs"), parameter)


def _follow(logits: Tensor, probs: Tensor) -> bool:
    """Whether torch derived the logits from the probabilities."""
    return only_plain_operations() or torch.equal(logits, probs_to_logits(probs, is_binary=True))


def log_probs(source: Parameters) -> Tensor:
    is_logits, parameter = source
    if is_logits:
        return parameter
    positive = parameter > 0
    return torch.where(positive, torch.where(positive, parameter, 1.0).log(), -torch.inf)


def log_odds(source: Parameters) -> Tensor:
    is_logits, parameter = source
    if is_logits:
        return parameter
    inner = (parameter > 0) & (parameter < 1)
    p = torch.where(inner, parameter, 0.5)
    certain = torch.where(parameter > 0.5, torch.inf, -torch.inf).to(p.dtype)
    return torch.where(inner, p.log() - torch.log1p(-p), certain)


def named_parameters(distribution: Any) -> dict[str, Tensor]:
    """The floating-point parameters of one of torch's distributions, by name."""
    names = list(distribution.arg_constraints)
    if "scale_tril" in names:  # of three ways to give a covariance
        names = ["loc", "scale_tril"]
    if "logits" in names:  # of two ways to give a probability
        names.remove("probs" if parameters_of(distribution).is_logits else "logits")
    values = {name: getattr(distribution, name) for name in names}
    return {name: x for name, x in values.items() if x.is_floating_point()}


def floating_tensors(distribution: Any) -> Iterator[Tensor]:
    """The floating-point tensors that it is made of."""
    for value in vars(distribution).values():
        if isinstance(value, td.Distribution):
            yield from floating_tensors(value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            yield value


def doubled(distribution: Any) -> Any:
    """The same distribution of torch in float64."""
    kinds = type(distribution).__mro__
    kind: Any = next(kind for kind in kinds if kind.__module__.startswith("torch."))
    parameters = {name: x.double() for name, x in named_parameters(distribution).items()}
    return kind(**parameters, validate_args=False)
