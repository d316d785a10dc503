"""From the arguments of a public function to its result: reading, formula or kernel, reduction."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from ..conventions import (
    Reduction,
    Temperature,
    Unit,
    check_reduction,
    convert,
    fit_mask,
    fit_temperature,
    only_plain_operations,
    reduce,
    reduction_weight,
    unit_factor,
)
from ..kernels.autograd import values_of_rows
from ..kernels.rows import Divergence
from .pairs import Pair, Single
from .reading import ReadingLogits, ReadingProbs

Made = TypeVar("Made", Single, Pair)


class ProbsOptions(ReadingProbs, total=False):
    """Keywords of every ``_from_probs`` and ``_from_log_probs`` function; see ``discrete``."""

    reduction: Reduction
    unit: Unit


class LogitsOptions(ProbsOptions, ReadingLogits, total=False):
    """Keywords of every ``_from_logits`` function."""


def apply_formula(
    formula: Callable[[Made], Tensor],
    make: Callable[..., Made],
    distributions: tuple[Tensor, ...],
    options: LogitsOptions | ProbsOptions,
) -> Tensor:
    """formula(make(distributions)) in the unit and reduction asked for."""
    unit, reduction, reading = _parts(options)
    values = convert(formula(make(*distributions, **reading)), "nats", unit)
    return reduce(values, options.get("mask"), reduction)


def _parts(options: LogitsOptions | ProbsOptions) -> tuple[Unit, Reduction, dict[str, Any]]:
    """Unit, reduction, and how to read the distributions."""
    reading: dict[str, Any] = dict(options)
    unit, reduction = reading.pop("unit", "nats"), reading.pop("reduction", "none")
    check_reduction(reduction)
    return unit, reduction, reading


def apply_kernel(
    divergence: Callable[[Temperature], Divergence],
    formula: Callable[..., Tensor],
    read: Callable[..., list[Tensor]],
    distributions: tuple[Tensor, ...],
    options: LogitsOptions | ProbsOptions,
) -> Tensor:
    """The same by a kernel, which computes the values and their gradients in one pass.

    ``formula`` is that of distributions as they are read, and a temperature; it serves transforms,
    compilers, and temperatures that require a gradient.
    """
    unit, reduction, reading = _parts(options)
    mask, temperature = options.get("mask"), reading.get("temperature", 1.0)
    if _needs_formula(distributions[0], temperature):
        ready = read(*distributions, **reading)
        values = formula(*ready, fit_temperature(temperature, ready[0].shape[:-1]))
        return reduce(convert(values, "nats", unit), mask, reduction)
    if not options.get("validate"):
        reading.pop("mask", None)
    ready = read(*distributions, **reading)
    shape = ready[0].shape[:-1]
    if mask is not None:
        mask = fit_mask(mask, shape, "mask")
    kernel = divergence(fit_temperature(temperature, shape))
    factor = unit_factor("nats", unit)
    if reduction == "none":
        values = values_of_rows(kernel, formula, ready, mask)
        return values if factor == 1 else values * factor
    counted = None if mask is None else int(mask.sum())
    weight = factor * reduction_weight(reduction, shape, counted)
    return values_of_rows(kernel, formula, ready, mask, weight)


def _needs_formula(first: Tensor, temperature: Temperature) -> bool:
    return (
        only_plain_operations()
        or first.device.type == "mps"  # which has no float64
        or (isinstance(temperature, Tensor) and temperature.requires_grad)
    )
