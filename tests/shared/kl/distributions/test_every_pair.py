"""Every pair in torch's registry: digits in float32, never negative, half precision, gradients."""

from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor
from torch import distributions as td
from torch.distributions import kl as torch_kl

from shared.kl import kl_divergence

GENERIC = {td.ExponentialFamily, td.Independent, td.TransformedDistribution}
PAIRS = sorted(
    ((p, q) for p, q in torch_kl._KL_REGISTRY if not {p, q} & GENERIC),
    key=lambda pair: (pair[0].__name__, pair[1].__name__),
)
NAMES = [f"{p.__name__}-{q.__name__}" for p, q in PAIRS]


def uniform(*shape: int, seed: int, low: float, high: float) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=rng, dtype=torch.float64)


def parameters(kind: type, seed: int) -> dict[str, Tensor]:
    """Inside the parameter space; supports that are bounded lie within each other."""
    a, b = (uniform(4, seed=seed + i, low=0.4, high=1.6) for i in (0, 1))
    prob = uniform(4, seed=seed + 2, low=0.1, high=0.4)
    rows, diagonal = (uniform(4, 3, seed=seed + i, low=0.5, high=1.5) for i in (3, 4))
    match kind.__name__:
        case "Bernoulli" | "ContinuousBernoulli" | "Geometric":
            return {"probs": prob}
        case "Binomial":
            return {"total_count": torch.full((4,), 3.0), "probs": prob}
        case "Beta":
            return {"concentration1": a, "concentration0": b}
        case "Categorical" | "OneHotCategorical":
            return {"logits": rows}
        case "Dirichlet":
            return {"concentration": rows}
        case "Exponential" | "Poisson":
            return {"rate": a}
        case "Gamma":
            return {"concentration": a, "rate": b}
        case "HalfNormal":
            return {"scale": a}
        case "LowRankMultivariateNormal":
            return {"loc": rows, "cov_factor": rows[..., None], "cov_diag": diagonal}
        case "MultivariateNormal":
            return {"loc": rows, "scale_tril": torch.diag_embed(diagonal)}
        case "Pareto":
            return {"scale": 0.2 + 0.01 * a, "alpha": 2.5 + b}
        case "Uniform":
            return {"low": 0.2 + 0.1 * prob, "high": 0.9 - 0.1 * prob}
        case _:
            return {"loc": a, "scale": b}


def made(kind: Any, values: dict[str, Tensor], dtype: torch.dtype) -> Any:
    return kind(**{n: x.to(dtype) for n, x in values.items()}, validate_args=False)


@pytest.mark.parametrize(("kind_p", "kind_q"), PAIRS, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_is_computed_as_in_float64(kind_p: Any, kind_q: Any, dtype: torch.dtype) -> None:
    p, q = (
        {n: x.to(dtype) for n, x in parameters(kind, seed).items()}
        for kind, seed in ((kind_p, 0), (kind_q, 10))
    )
    if dtype != torch.float32 and td.LowRankMultivariateNormal in (kind_p, kind_q):
        pytest.skip("torch has no decomposition in half precision, and cannot make one of these")
    ours = made(kind_p, p, dtype), made(kind_q, q, dtype)
    value = kl_divergence(*ours)
    assert value.dtype == torch.float32
    assert (value >= 0).all()
    for values, distribution in zip((p, q), ours, strict=True):
        if "logits" in values:  # which it normalises when it is made
            values["logits"] = distribution.logits
    truth = kl_divergence(made(kind_p, p, torch.float64), made(kind_q, q, torch.float64))
    torch.testing.assert_close(value, truth.float(), rtol=2e-6, atol=0)


@pytest.mark.parametrize(("kind_p", "kind_q"), PAIRS, ids=NAMES)
def test_gradients_are_finite_where_the_divergence_is(kind_p: Any, kind_q: Any) -> None:
    leaves = [
        {n: x.requires_grad_() for n, x in parameters(kind, seed).items()}
        for kind, seed in ((kind_p, 0), (kind_q, 10))
    ]
    value = kl_divergence(
        *(made(k, x, torch.float64) for k, x in zip((kind_p, kind_q), leaves, strict=True))
    )
    finite = torch.where(value.isfinite(), value, 0.0)
    tensors = [x for values in leaves for n, x in values.items() if n != "total_count"]
    if finite.requires_grad:
        for gradient in torch.autograd.grad(finite.sum(), tensors, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


# Textbook formulas; differences cancel in them, which 60 digits survive.
log, lgamma, digamma, euler = mpmath.log, mpmath.loggamma, mpmath.digamma, mpmath.euler


def gamma(a: mpf, b: mpf, c: mpf, d: mpf) -> mpf:
    return (a - c) * digamma(a) - lgamma(a) + lgamma(c) + c * log(b / d) + a * (d - b) / b


def dirichlet(*x: mpf) -> mpf:
    p, q = x[: len(x) // 2], x[len(x) // 2 :]
    total = lgamma(sum(p)) - lgamma(sum(q))
    terms = (
        lgamma(b) - lgamma(a) + (a - b) * (digamma(a) - digamma(sum(p)))
        for a, b in zip(p, q, strict=True)
    )
    return total + sum(terms)


def gumbel(m: mpf, s: mpf, n: mpf, t: mpf) -> mpf:
    grown = mpmath.exp((n - m) / t) * mpmath.gamma(1 + s / t)
    return log(t / s) + euler * (s / t - 1) + grown - 1 + (m - n) / t


def laplace(m: mpf, s: mpf, n: mpf, t: mpf) -> mpf:
    return log(t / s) + (s * mpmath.exp(-abs(m - n) / s) + abs(m - n)) / t - 1


def normal(m: mpf, s: mpf, n: mpf, t: mpf) -> mpf:
    return log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - mpf(1) / 2


def cauchy(m: mpf, s: mpf, n: mpf, t: mpf) -> mpf:
    return log(((s + t) ** 2 + (m - n) ** 2) / (4 * s * t))


def weibull(s: mpf, k: mpf, t: mpf, j: mpf) -> mpf:
    grown = (s / t) ** j * mpmath.gamma(j / k + 1)
    return log(k / s**k) - log(j / t**j) + (k - j) * (log(s) - euler / k) + grown - 1


FORMULAS: dict[Any, tuple[Callable[..., mpf], str]] = {
    td.Beta: (dirichlet, "concentration1 concentration0"),
    td.Cauchy: (cauchy, "loc scale"),
    td.Dirichlet: (dirichlet, "concentration"),
    td.Exponential: (lambda a, b: log(a / b) + b / a - 1, "rate"),
    td.Gamma: (gamma, "concentration rate"),
    td.Gumbel: (gumbel, "loc scale"),
    td.HalfNormal: (lambda s, t: normal(mpf(0), s, mpf(0), t), "scale"),
    td.InverseGamma: (gamma, "concentration rate"),
    td.Laplace: (laplace, "loc scale"),
    td.LogNormal: (normal, "loc scale"),
    td.Normal: (normal, "loc scale"),
    td.Poisson: (lambda a, b: a * log(a / b) - a + b, "rate"),
    td.Weibull: (weibull, "scale concentration"),
}
SIZES = [1e-3, 0.1, 1.0, 30.0, 1e3, 1e6]


@pytest.mark.parametrize("kind", FORMULAS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gap", [1e-5, 1e-3, 0.05, 0.5])
def test_many_digits_in_float32(kind: Any, size: float, gap: float) -> None:
    formula, names = FORMULAS[kind]
    mpmath.mp.dps = 60
    for seed in range(4):
        p, q = {}, {}
        for i, name in enumerate(names.split()):
            shape = (3,) if kind is td.Dirichlet else ()
            base = size * uniform(*shape, seed=10 * seed + i, low=0.5, high=1.5)
            moved = base * (1 + gap * uniform(*shape, seed=99 + 10 * seed + i, low=-1, high=1))
            p[name], q[name] = base.float(), moved.float()
        value = kl_divergence(kind(**p), kind(**q))
        numbers = [
            mpf(number) for x in (p, q) for name in x for number in x[name].reshape(-1).tolist()
        ]
        truth = torch.tensor(float(formula(*numbers)), dtype=torch.float64).float().item()
        assert value.item() == pytest.approx(truth, rel=1e-6, abs=1e-30)
        assert value >= 0


def test_what_never_comes_of_a_rate_of_zero() -> None:
    nothing, some = td.Poisson(torch.tensor([0.0])), td.Poisson(torch.tensor([0.1]))
    coin, coins = td.Bernoulli(torch.tensor([0.5])), td.Binomial(3, torch.tensor([0.5]))
    log2 = torch.tensor([2.0]).log()
    torch.testing.assert_close(kl_divergence(nothing, coin), log2)
    torch.testing.assert_close(kl_divergence(nothing, coins), 3 * log2)
    assert kl_divergence(some, coin).item() == torch.inf


def test_a_family_of_ones_own_has_its_parents_formula() -> None:
    class Own(td.Gamma):
        pass

    own, parent = Own(torch.tensor(2.0), torch.tensor(1.0)), td.Exponential(torch.tensor(1.5))
    truth = torch_kl.kl_divergence(td.Gamma(torch.tensor(2.0), torch.tensor(1.0)), parent)
    torch.testing.assert_close(kl_divergence(own, parent), truth)
