"""Estimates from samples never exclude the truth: inf, refused, or within six standard errors."""

from typing import Any

import pytest
import torch
from torch import distributions as td
from torch import tensor as t

from shared.kl import kl_divergence

TINY = t([1 - 1e-12, 1e-12])
PAIRS: list[tuple[Any, Any]] = [
    (td.Categorical(t([0.5, 0.5])), td.Categorical(TINY)),
    (td.Categorical(logits=t([0.0, 0.0])), td.Categorical(logits=t([0.0, -200.0]))),
    (td.OneHotCategorical(t([0.5, 0.5])), td.OneHotCategorical(TINY)),
    (td.Multinomial(5, t([0.5, 0.5])), td.Multinomial(5, t([1e-9, 1 - 1e-9]))),
    (td.Bernoulli(t(0.5)), td.Bernoulli(logits=t(30.0))),
    (td.Bernoulli(t(1.0)), td.Bernoulli(t(0.25))),
    (td.Binomial(3, t(0.5)), td.Binomial(3, t(1e-10))),
    (td.Binomial(3, t(1.0)), td.Binomial(3, t(0.5))),
    (td.Geometric(t(0.3)), td.Geometric(t(0.9))),
    (td.NegativeBinomial(4.0, t(0.3)), td.NegativeBinomial(4.0, t(0.6))),
    (td.Poisson(t(0.5)), td.Poisson(t(1e-9))),
    (td.Beta(t(0.3), t(0.3)), td.Beta(t(1.0), t(2.0))),
    (td.Gamma(t(0.2), t(1.0)), td.Gamma(t(2.0), t(1.0))),
    (td.Dirichlet(t([0.2, 0.3, 0.4])), td.Dirichlet(t([1.0, 1.0, 1.0]))),
    (td.Exponential(t(1.0)), td.Exponential(t(3.0))),
    (td.Laplace(t(0.0), t(1.0)), td.Laplace(t(1.0), t(2.0))),
    (
        td.Independent(td.Bernoulli(t([0.5, 0.5])), 1),
        td.Independent(td.Bernoulli(t([0.25, 1e-10])), 1),
    ),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: type(pair[0]).__name__)
def test_the_truth_is_within_six_standard_errors(pair: tuple[Any, Any]) -> None:
    truth = kl_divergence(*pair)
    estimate = kl_divergence(*pair, "monte_carlo", samples=20_000)
    assert estimate.mean.dtype == torch.float32
    assert (estimate.mean - truth).abs() <= 6 * estimate.stderr + 1e-6 * truth


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (td.Categorical(t([0.2, 0.8])), td.Categorical(t([0.0, 1.0]))),
        (td.Bernoulli(t(0.5)), td.Bernoulli(t(0.0))),
        (td.Binomial(3, t(0.5)), td.Binomial(3, t(0.0))),
        (td.OneHotCategorical(t([0.2, 0.8])), td.OneHotCategorical(t([1.0, 0.0]))),
        (td.Multinomial(2, t([0.2, 0.8])), td.Multinomial(2, t([1.0, 0.0]))),
    ],
)
def test_what_q_excludes_makes_it_infinite(p: Any, q: Any) -> None:
    assert kl_divergence(p, q, "monte_carlo", samples=10_000).mean == torch.inf


@pytest.mark.parametrize(
    "p", [td.Gamma(t(1e-3), t(1.0)), td.Beta(t(1e-3), t(1e-3)), td.Dirichlet(t([1e-3] * 3))]
)
def test_draws_that_underflow_are_refused(p: Any) -> None:
    with pytest.raises(ValueError, match=f"draws of {type(p).__name__} underflow"):
        kl_divergence(p, p, "monte_carlo", samples=1000)
