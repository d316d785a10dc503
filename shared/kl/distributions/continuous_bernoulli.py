"""The log-normaliser of the continuous Bernoulli and its derivatives, for every logit.

Density exp(l x - A(l)) on [0, 1] with the logit l (Loaiza-Ganem and Cunningham 2019); A is even up
to l / 2, A(l) = l / 2 + g(l / 2) with g(x) = log(sinh(x) / x). Use float64.
"""

import torch
from torch import Tensor

_SERIES_BELOW = 0.25
# g(x) = sum c_n x^(2n), c_n = 2^(2n) B_2n / (2n (2n)!); the next term is below 1e-16
_SERIES = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250)


def _even_series(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """sum c_n x^(2n), n from 0."""
    square, total = x.square(), torch.zeros_like(x)
    for c in reversed(coefficients):
        total = total * square + c
    return total


def _split(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(where the series holds, x there, |x| elsewhere) for x = logits / 2."""
    x = 0.5 * logits
    small = x.abs() < _SERIES_BELOW
    return small, torch.where(small, x, 0.0), torch.where(small, 1.0, x.abs())


def log_normaliser(logits: Tensor) -> Tensor:
    """A(l) = log((exp(l) - 1) / l), any shape."""
    small, x, far = _split(logits)
    series = x.square() * _even_series(x, _SERIES)
    direct = far + torch.log1p(-torch.exp(-2 * far)) - (2 * far).log()
    return 0.5 * logits + torch.where(small, series, direct)


def mean(logits: Tensor) -> Tensor:
    """A'(l), the mean, any shape."""
    small, x, far = _split(logits)
    derivative = tuple(2 * (n + 1) * c for n, c in enumerate(_SERIES))
    direct = torch.where(logits > 0, 1.0, -1.0) * (1 / torch.tanh(far) - 1 / far)
    return 0.5 + 0.5 * torch.where(small, x * _even_series(x, derivative), direct)


def variance(logits: Tensor) -> Tensor:
    """A''(l), any shape."""
    small, x, far = _split(logits)
    second = tuple((2 * n + 2) * (2 * n + 1) * c for n, c in enumerate(_SERIES))
    square = torch.exp(-2 * far)
    direct = far**-2 - 4 * square / (1 - square).square()  # 1 / x^2 - 1 / sinh(x)^2
    return 0.25 * torch.where(small, _even_series(x, second), direct)
