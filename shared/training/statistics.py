"""Statistics of independent values."""

import math

from torch import Tensor


def mean_and_standard_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent values [n], and its standard error, in float64."""
    wide = values.double()
    return wide.mean().item(), (wide.std() / math.sqrt(len(wide))).item()
