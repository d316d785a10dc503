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


@pytest.mark.parametrize(
    "p",
    [
        td.InverseGamma(t(1e-3), t(1.0)),
        td.Chi2(t(1e-3)),
        td.FisherSnedecor(t(1e-3), t(1.0)),
        td.StudentT(t(1e-3)),
        td.Independent(td.InverseGamma(t([1e-3, 2.0]), t([1.0, 1.0])), 1),
    ],
    ids=lambda p: type(p).__name__,
)
def test_what_is_built_on_draws_that_underflow_is_refused(p: Any) -> None:
    with pytest.raises(ValueError, match="near the edge of its support"):
        kl_divergence(p, p, "monte_carlo", samples=1000)


RARE: list[tuple[Any, Any]] = [  # outcomes that a thousand draws do not contain
    (td.Categorical(t([1 - 1e-6, 1e-6])), td.Categorical(logits=t([0.0, -600.0]))),
    (td.OneHotCategorical(t([1 - 1e-6, 1e-6])), td.OneHotCategorical(logits=t([0.0, -600.0]))),
    (td.Bernoulli(t(1e-7)), td.Bernoulli(logits=t(-300.0))),
    (td.Binomial(2, t(1e-7)), td.Binomial(2, logits=t(-300.0))),
    (td.Multinomial(3, t([1 - 1e-7, 1e-7])), td.Multinomial(3, logits=t([0.0, -300.0]))),
    (td.Poisson(t(1e-7)), td.Poisson(t(1e-30))),
    (td.Geometric(t(1 - 1e-6)), td.Geometric(logits=t(200.0))),
    (td.NegativeBinomial(2.0, t(1e-7)), td.NegativeBinomial(2.0, logits=t(-100.0))),
    (
        td.Independent(td.Bernoulli(t([1e-7, 0.5])), 1),
        td.Independent(td.Bernoulli(logits=t([-300.0, 0.1])), 1),
    ),
]


@pytest.mark.parametrize("pair", RARE, ids=lambda pair: type(pair[0]).__name__)
def test_what_was_not_drawn_is_within_the_error(pair: tuple[Any, Any]) -> None:
    truth = kl_divergence(*pair)
    estimate = kl_divergence(*pair, "monte_carlo", samples=1000)
    assert truth.isfinite()
    assert (estimate.mean - truth).abs() <= 6 * estimate.stderr


def test_the_error_is_infinite_where_q_excludes_what_was_not_drawn() -> None:
    for p, q in (
        (td.Categorical(t([1 - 1e-7, 1e-7])), td.Categorical(t([1.0, 0.0]))),
        (td.Bernoulli(t(1e-7)), td.Bernoulli(t(0.0))),
        (td.Poisson(t(1e-7)), td.Binomial(1, t(1e-7))),
        (td.Multinomial(2, t([1 - 1e-7, 1e-7])), td.Multinomial(2, t([1.0, 0.0]))),
    ):
        estimate = kl_divergence(p, q, "monte_carlo", samples=100)
        assert estimate.stderr == torch.inf or estimate.mean == torch.inf


def test_a_density_on_a_wider_interval_makes_it_infinite() -> None:
    for p, q in (
        (td.Uniform(t(0.0), t(1.0)), td.Uniform(t(0.0), t(1 - 1e-6))),
        (td.Pareto(t(1.0), t(1.0)), td.Pareto(t(1 + 1e-6), t(1.0))),
        (td.Normal(t(30.0), t(1.0)), td.Exponential(t(1.0))),
    ):
        assert kl_divergence(p, q, "monte_carlo", samples=100).mean == torch.inf
    for p, q in (
        (td.Uniform(t(0.0), t(1.0)), td.Beta(t(1.0), t(2.0))),
        (td.Beta(t(2.0), t(2.0)), td.Uniform(t(0.0), t(1.0))),
        (td.Exponential(t(1.0)), td.Normal(t(0.0), t(1.0))),
    ):
        assert kl_divergence(p, q, "monte_carlo", samples=100).mean.isfinite()


def test_the_error_of_draws_that_show_everything_is_theirs() -> None:
    p, q = td.Categorical(t([0.3, 0.7])), td.Categorical(t([0.6, 0.4]))
    estimate = kl_divergence(p, q, "monte_carlo", samples=100_000)
    ratio = (p.probs / q.probs).log()
    deviation = (p.probs * (ratio - (p.probs * ratio).sum()).square()).sum().sqrt()
    torch.testing.assert_close(estimate.stderr, deviation / 100_000**0.5, rtol=1e-2, atol=0)
