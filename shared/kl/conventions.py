"""Units, reductions, masks and checks of arguments, the same for every function."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Unit = Literal["nats", "bits", "hartleys"]
Reduction = Literal["none", "sum", "batchmean", "positionmean"]

Temperature = float | Tensor

NATS_PER: dict[str, float] = {"nats": 1.0, "bits": math.log(2), "hartleys": math.log(10)}


def convert(value: Tensor, source: Unit = "nats", target: Unit = "nats") -> Tensor:
    """An amount of information in another unit: 1 bit = ln 2 nats, 1 hartley = ln 10 nats.

    Raises:
        ValueError: an unknown unit.
    """
    factor = unit_factor(source, target)
    return value if source == target else value * factor


def unit_factor(source: Unit, target: Unit) -> float:
    """How many of the target unit are one of the source's."""
    for unit in (source, target):
        if unit not in NATS_PER:
            raise ValueError(f"unit must be one of {', '.join(NATS_PER)}, got {unit!r}")
    return NATS_PER[source] / NATS_PER[target]


def check_reduction(reduction: str) -> None:
    """ValueError unless the reduction is one of ours; "mean" is refused by name."""
    if reduction not in get_args(Reduction):
        more = ' ("mean" does not say of what)' if reduction == "mean" else ""
        choices = ", ".join(get_args(Reduction))
        raise ValueError(f"reduction must be one of {choices}, got {reduction!r}{more}")


def reduce(values: Tensor, mask: Tensor | None = None, reduction: Reduction = "none") -> Tensor:
    """Reduce a tensor of positions [batch, ...].

    Args:
        mask: bool, True where a position counts, broadcastable with ``values``. Positions that do
            not count are 0 and send no gradient, whatever stands there.
        reduction: ``"none"`` keeps the shape; ``"sum"``; ``"batchmean"`` is the sum over all
            positions divided by the size of the first dimension; ``"positionmean"`` the sum
            divided by the number of positions that count. Either mean is 0 if there is none.

    Raises:
        ValueError: an unknown reduction; a mask that is not bool or does not fit.
    """
    check_reduction(reduction)
    if mask is not None:
        mask = fit_mask(mask, values.shape, "mask")
        values = torch.where(mask, values, 0.0)
    if reduction == "none":
        return values
    if reduction == "positionmean" and mask is not None:
        return values.sum() / mask.sum().clamp(min=1)
    return values.sum() * reduction_weight(reduction, values.shape)


def reduction_weight(reduction: Reduction, shape: torch.Size, counted: int | None = None) -> float:
    """The factor of every value in the reduction; ``counted`` positions of ``shape`` count."""
    match reduction:
        case "batchmean":  # of an empty batch: 0
            return 1 / max(shape[0], 1) if shape else 1.0
        case "positionmean":
            return 1 / max(shape.numel() if counted is None else counted, 1)
        case _:
            return 1.0


def lifted(value: Tensor) -> Tensor:
    """Rounding below 0 taken away; the derivatives, which a clamp would zero, are left alone."""
    return value - value.detach().clamp(max=0)


def safe_root(x: Tensor, order: float = 2.0) -> Tensor:
    """x^(1 / order) with gradient 0 at 0, where the derivative is infinite."""
    positive = x > 0
    root = torch.where(positive, x, 1.0).pow(1 / order)
    return torch.where(positive, root, x.detach().sqrt())  # 0, and NaN for what has no root


def fit_mask(mask: Tensor, shape: torch.Size, name: str) -> Tensor:
    """The mask, expanded to ``shape``; ValueError naming it if it is not bool or does not fit."""
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be bool, got {mask.dtype}")
    try:
        return mask.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} of shape {list(mask.shape)} does not broadcast to {list(shape)}"
        ) from None


def widened(**tensors: Tensor) -> list[Tensor]:
    """The arguments in float32 at least.

    Raises:
        ValueError: one is not of a floating-point type; the message names it.
    """
    check_floating(**tensors)
    return [
        tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for tensor in tensors.values()
    ]


def only_plain_operations() -> bool:
    """Whether custom autograd functions must be avoided.

    Under ``torch.compile``, ``torch.func`` and forward-mode differentiation, which some of them
    do not support; the same formulas in torch's own operations take their place.
    """
    if torch.compiler.is_compiling():
        return True
    level: int = torch.autograd.forward_ad._current_level
    return level >= 0 or torch._C._are_functorch_transforms_active()


def check_floating(**tensors: Tensor) -> None:
    """ValueError naming the first argument that is not of a floating-point type."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {tensor.dtype}")


def broadcast(
    name_a: str, a: Tensor, name_b: str, b: Tensor, categories: int | None = None
) -> tuple[Tensor, Tensor]:
    """Both tensors in their common shape and precision (half precision becomes float32).

    Args:
        categories: the dimension that is not broadcast.

    Raises:
        ValueError: a tensor is not of a floating-point type; the shapes do not broadcast, or the
            numbers of categories differ.
    """
    check_floating(**{name_a: a, name_b: b})
    if categories is not None:
        number_a, number_b = _size(a, b, categories), _size(b, a, categories)
        if number_a != number_b:
            raise ValueError(
                f"{name_a} of shape {list(a.shape)} and {name_b} of shape {list(b.shape)} have "
                f"different numbers of categories along dimension {categories}"
            )
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    try:
        a, b = torch.broadcast_tensors(a, b)
    except RuntimeError:
        raise ValueError(
            f"{name_a} of shape {list(a.shape)} and {name_b} of shape {list(b.shape)} "
            "do not broadcast"
        ) from None
    return a.to(dtype), b.to(dtype)


def _size(tensor: Tensor, other: Tensor, dim: int) -> int:
    """Of a dimension of the common shape; 1 where the tensor lacks it."""
    shape = [1] * (other.dim() - tensor.dim()) + list(tensor.shape)
    return shape[dim] if -len(shape) <= dim < len(shape) else 1


def categories_last(name: str, tensor: Tensor, dim: int) -> Tensor:
    """The tensor with its event dimension last.

    Raises:
        ValueError: no such dimension, or it is empty.
    """
    if tensor.dim() == 0 or not -tensor.dim() <= dim < tensor.dim():
        raise ValueError(f"{name} of shape {list(tensor.shape)} has no dimension {dim}")
    if tensor.shape[dim] == 0:
        raise ValueError(f"{name} of shape {list(tensor.shape)} has no categories")
    return tensor.movedim(dim, -1)


def check_temperature(temperature: Temperature) -> None:
    """ValueError unless it is a positive, finite number."""
    if isinstance(temperature, Tensor):
        raise ValueError("temperature must be a number here; kl_from_logits takes a tensor of them")
    if not temperature > 0 or temperature == float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def fit_temperature(temperature: Temperature, shape: torch.Size) -> Temperature:
    """The temperature of logits whose positions have ``shape``; of a tensor [*shape, 1].

    Raises:
        ValueError: not positive and finite, not of a floating-point type, or it does not broadcast.
    """
    if not isinstance(temperature, Tensor):
        check_temperature(temperature)
        return temperature
    (temperature,) = widened(temperature=temperature)
    if not (only_plain_operations() or bool(((temperature > 0) & temperature.isfinite()).all())):
        raise ValueError("temperature must be positive and finite everywhere")
    try:
        return temperature.expand(shape)[..., None]
    except RuntimeError:
        raise ValueError(
            f"temperature of shape {list(temperature.shape)} does not broadcast to {list(shape)}"
        ) from None


def check_probs(name: str, probs: Tensor, rounding: float = 0.0, what: str = "") -> None:
    """ValueError naming the argument unless every row is a probability vector (a pass or three).

    Args:
        rounding: of the type in which the probabilities came.
        what: of the argument they are.
    """
    if not bool(torch.isfinite(probs).all()):
        raise ValueError(f"{what}{name} has values that are not finite")
    if bool((probs < 0).any()):
        raise ValueError(f"{what}{name} has negative values, the least is {probs.min().item():g}")
    tolerance = max(rounding, 1e-4 if probs.dtype != torch.float64 else 1e-8)
    error = (probs.sum(-1) - 1).abs().max().item() if probs.numel() else 0.0
    if error > tolerance:
        raise ValueError(f"{what}{name} is not normalised: a sum is off 1 by {error:g}")


def check_logits(name: str, logits: Tensor) -> None:
    """ValueError naming the argument if a value is NaN or +inf, or a row is -inf throughout."""
    if bool((logits.isnan() | (logits == torch.inf)).any()):
        raise ValueError(f"{name} has values that are NaN or +inf")
    if bool((logits == -torch.inf).all(-1).any()):
        raise ValueError(f"{name} has a row without any category above -inf")


def check_weight(weight: float) -> None:
    """ValueError unless the weight of a mixture is strictly between 0 and 1."""
    if not 0 < weight < 1:
        raise ValueError(f"weight must lie strictly between 0 and 1, got {weight}")
