"""The closed forms against torch inside, integrals, sums and many digits."""

import math

import mpmath
import pytest
import torch
from scipy import integrate
from scipy.special import rel_entr
from torch import distributions as td
from torch.distributions import kl as torch_kl
from torch.nn.functional import softplus

from shared.kl.distributions.kl_divergence import kl_divergence

F64 = torch.float64


def interior(rng, *shape, low=0.2, high=2.0):
    return low + (high - low) * torch.rand(shape, generator=rng, dtype=F64)


def distributions(seed):
    """One of each family, parameters inside."""
    rng = torch.Generator().manual_seed(seed)
    a, b = interior(rng, 4), interior(rng, 4)
    prob = interior(rng, 4, low=0.1, high=0.9)
    lower = torch.tril(interior(rng, 4, 2, 2))
    concentration = interior(rng, 4, 3)
    return {
        "Bernoulli": td.Bernoulli(prob),
        "Beta": td.Beta(a, b),
        "Binomial": td.Binomial(5, prob),
        "Categorical": td.Categorical(logits=concentration),
        "Cauchy": td.Cauchy(a, b),
        "ContinuousBernoulli": td.ContinuousBernoulli(prob * 0.4),
        "Dirichlet": td.Dirichlet(concentration),
        "Exponential": td.Exponential(a),
        "Gamma": td.Gamma(a, b),
        "Geometric": td.Geometric(prob),
        "Gumbel": td.Gumbel(a, b),
        "HalfNormal": td.HalfNormal(a),
        "HalfCauchy": td.HalfCauchy(a),
        "Independent": td.Independent(td.Gamma(concentration, 1.0), 1),
        "InverseGamma": td.InverseGamma(a, b),
        "Laplace": td.Laplace(a, b),
        "LogNormal": td.LogNormal(a, b),
        "LowRank": td.LowRankMultivariateNormal(
            concentration[:, :2], concentration[:, 1:, None], concentration[:, :2]
        ),
        "MultivariateNormal": td.MultivariateNormal(concentration[:, :2], scale_tril=lower),
        "Normal": td.Normal(a, b),
        "OneHotCategorical": td.OneHotCategorical(concentration),
        "Pareto": td.Pareto(0.2, a + 2),
        "Poisson": td.Poisson(a),
        "Uniform": td.Uniform(0.4 * prob, 0.5 + 0.4 * prob),
        "Weibull": td.Weibull(a, b),
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_all_of_torchs_pairs_agree_inside_and_none_is_lost(seed):
    ps, qs = distributions(seed), distributions(seed + 10)
    compared = set()
    for name_p, p in ps.items():
        for name_q, q in qs.items():
            try:
                truth = torch_kl.kl_divergence(p, q)
            except NotImplementedError:
                continue
            compared.add((name_p, name_q))
            value = kl_divergence(p, q)
            assert value.dtype == F64
            torch.testing.assert_close(
                value, truth, rtol=1e-9, atol=1e-12, msg=lambda m, n=(name_p, name_q): f"{n}: {m}"
            )
    assert len(compared) >= 79


@pytest.mark.parametrize("family", [td.Normal, td.Gamma, td.Laplace, td.Cauchy, td.HalfCauchy])
def test_gradients_agree_with_torch_inside(family):
    rng = torch.Generator().manual_seed(5)
    parameters = 1 if family is td.HalfCauchy else 2
    leaves = [interior(rng, 6).requires_grad_() for _ in range(2 * parameters)]
    p, q = family(*leaves[:parameters]), family(*leaves[parameters:])
    ours = torch.autograd.grad(kl_divergence(p, q).sum(), leaves)
    theirs = torch.autograd.grad(torch_kl.kl_divergence(p, q).sum(), leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)  # torch's trigamma: 1e-9


def quadrature(p, q, low, high):
    def integrand(x):
        at = torch.tensor(x, dtype=F64)
        log_p = p.log_prob(at)
        return (log_p.exp() * (log_p - q.log_prob(at))).item()

    return integrate.quad(integrand, low, high, epsabs=1e-11, epsrel=1e-9, limit=200)[0]


def scalars(*values):
    return [torch.tensor(v, dtype=F64) for v in values]


def cb(logit):
    return td.ContinuousBernoulli(logits=scalars(logit)[0], lims=(0.4999999, 0.5000001))


@pytest.mark.parametrize(
    ("p", "q", "low", "high"),
    [
        (td.VonMises(*scalars(0.3, 2.0)), td.VonMises(*scalars(-1.0, 0.7)), -math.pi, math.pi),
        (td.VonMises(*scalars(3.0, 8.0)), td.VonMises(*scalars(-3.0, 12.0)), -math.pi, math.pi),
        (td.Weibull(*scalars(1.5, 2.0)), td.Weibull(*scalars(0.7, 1.2)), 0, 12),
        (td.Weibull(*scalars(0.8, 1.1)), td.Weibull(*scalars(1.7, 3.0)), 0, 40),
        (cb(1.5), cb(-3.0), 0, 1),
        (cb(0.1), cb(9.0), 0, 1),
        (cb(-0.4), td.Uniform(*scalars(-1.0, 2.0)), 0, 1),
        (td.Uniform(*scalars(0.2, 0.9)), cb(5.0), 0.2, 0.9),
        (cb(5.0), td.Exponential(*scalars(1.3)), 0, 1),
        (cb(-0.3), td.Normal(*scalars(0.4, 0.8)), 0, 1),
        (cb(6.0), td.Normal(*scalars(0.4, 0.8)), 0, 1),
        (td.Beta(*scalars(2.0, 3.0)), cb(4.0), 0, 1),
        (td.Normal(*scalars(0.3, 0.5)), td.Normal(*scalars(-0.4, 0.9)), -7, 8),
        (td.HalfNormal(*scalars(0.5)), td.HalfNormal(*scalars(0.9)), 0, 6),
        (td.Laplace(*scalars(0.0, 0.4)), td.Normal(*scalars(0.2, 1.0)), -16, 16),
    ],
    ids=lambda d: type(d).__name__ if isinstance(d, td.Distribution) else "",
)
def test_continuous_pairs_are_the_integral(p, q, low, high):
    assert kl_divergence(p, q).item() == pytest.approx(quadrature(p, q, low, high), rel=1e-6)


def enumerate_counts(p, q, most):
    counts = torch.arange(most + 1, dtype=F64)
    return rel_entr(p.log_prob(counts).exp().numpy(), q.log_prob(counts).exp().numpy()).sum()


@pytest.mark.parametrize(
    ("p", "q", "most"),
    [
        (td.NegativeBinomial(*scalars(3.5, 0.4)), td.NegativeBinomial(*scalars(3.5, 0.6)), 150),
        (td.NegativeBinomial(*scalars(0.5, 0.7)), td.NegativeBinomial(*scalars(0.5, 0.2)), 300),
        (td.Geometric(*scalars(0.3)), td.Geometric(*scalars(0.6)), 200),
        (td.Poisson(*scalars(3.0)), td.Poisson(*scalars(1.2)), 60),
        (td.Binomial(7, *scalars(0.3)), td.Binomial(7, *scalars(0.8)), 7),
        (td.Bernoulli(*scalars(0.3)), td.Poisson(*scalars(0.8)), 1),
        (td.Bernoulli(logits=scalars(-1.3)[0]), td.Bernoulli(*scalars(0.8)), 1),
        (
            td.Categorical(*scalars([0.2, 0.5, 0.3])),
            td.Categorical(logits=scalars([1, 0.5, -2.0])[0]),
            2,
        ),
    ],
    ids=lambda d: type(d).__name__ if isinstance(d, td.Distribution) else "",
)
def test_discrete_pairs_are_the_sum(p, q, most):
    assert kl_divergence(p, q).item() == pytest.approx(enumerate_counts(p, q, most), rel=1e-9)


def test_negative_binomial_from_logits_and_refusals():
    r, a, b = scalars(2.0, 0.3, -1.2)
    from_logits = [td.NegativeBinomial(r, logits=x) for x in (a, b)]
    from_probs = [td.NegativeBinomial(r, probs=x.sigmoid()) for x in (a, b)]
    torch.testing.assert_close(kl_divergence(*from_logits), kl_divergence(*from_probs))
    with pytest.raises(NotImplementedError, match=r"different total_count.*monte_carlo"):
        kl_divergence(from_logits[0], td.NegativeBinomial(3.0, logits=b))
    with pytest.raises(NotImplementedError, match=r"p.total_count < q.total_count.*monte_carlo"):
        kl_divergence(td.Binomial(2, a.sigmoid()), td.Binomial(3, a.sigmoid()))


def test_multinomial_is_the_sum_over_outcomes():
    a, b = scalars([0.2, 0.5, 0.3], [0.6, 0.1, 0.3])
    p, q = td.Multinomial(3, a), td.Multinomial(3, b)
    outcomes = torch.tensor([(i, j, 3 - i - j) for i in range(4) for j in range(4 - i)], dtype=F64)
    log_p = p.log_prob(outcomes)
    truth = (log_p.exp() * (log_p - q.log_prob(outcomes))).sum()
    torch.testing.assert_close(kl_divergence(p, q), truth)
    assert kl_divergence(p, td.Multinomial(4, b)).item() == math.inf
    assert kl_divergence(td.Multinomial(0, a), td.Multinomial(0, b)).item() == 0


@pytest.mark.parametrize(
    "family",
    [
        lambda a, _: td.Bernoulli(logits=a),
        lambda a, _: td.Bernoulli(a.sigmoid()),
        lambda a, b: td.Categorical(logits=torch.stack([a, b], -1)),
        lambda a, b: td.Categorical(torch.stack([a, b], -1).softmax(-1)),
        lambda a, _: td.Binomial(4, logits=a),
        lambda a, _: td.Geometric(logits=a),
        lambda a, _: td.NegativeBinomial(2.5, logits=a),
        lambda a, _: td.Poisson(a.exp()),
        lambda a, b: td.Multinomial(3, logits=torch.stack([a, b], -1)),
        lambda a, _: td.ContinuousBernoulli(logits=a),
        lambda a, _: td.ContinuousBernoulli(logits=0.2 * a),
        lambda a, b: td.Normal(a, b.exp()),
        lambda a, b: td.VonMises(a, b.exp()),
        lambda a, b: td.Weibull(a.exp(), softplus(b)),
    ],
)
def test_gradients_of_our_pairs(family):
    rng = torch.Generator().manual_seed(6)
    inputs = [torch.randn(3, generator=rng, dtype=F64).requires_grad_() for _ in range(4)]

    def kl(a, b, c, d):
        return kl_divergence(family(a, b), family(c, d))

    assert torch.autograd.gradcheck(kl, inputs)
    assert torch.autograd.gradgradcheck(kl, inputs)


def exact_cb(a, b):
    def log_normaliser(x):
        return mpmath.log(mpmath.expm1(x) / x) if x else mpmath.mpf(0)

    with mpmath.workdps(400):
        a, b = mpmath.mpf(a), mpmath.mpf(b)
        mean = 1 / (1 - mpmath.exp(-a)) - 1 / a if a else mpmath.mpf(1) / 2
        return log_normaliser(b) - log_normaliser(a) - mean * (b - a)


def test_continuous_bernoulli_with_many_digits_at_every_logit():
    logits = [-800.0, -30.0, -0.51, -0.49, -1e-3, 0.0, 1e-6, 0.3, 2.0, 17.0, 500.0]
    for a in logits:
        for b in logits:
            p, q = (td.ContinuousBernoulli(logits=x) for x in scalars(a, b))
            truth = float(exact_cb(a, b))
            assert kl_divergence(p, q).item() == pytest.approx(truth, rel=1e-9, abs=1e-15)


def test_von_mises_of_high_concentration_is_nearly_normal():
    p, q = (td.VonMises(*scalars(m, k)) for m, k in ((0.0, 1e6), (1e-3, 2e6)))
    truth = kl_divergence(*(td.Normal(*scalars(m, k**-0.5)) for m, k in ((0, 1e6), (1e-3, 2e6))))
    assert kl_divergence(p, q).item() == pytest.approx(truth.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("family", "theta", "fisher"),
    [
        (lambda x: td.Normal(0.3, x.exp()), 0.4, 2.0),
        (lambda x: td.Normal(x, 2.0), 0.4, 0.25),
        (lambda x: td.Bernoulli(logits=x), 0.4, 0.240260745741529),
        (lambda x: td.Poisson(x.exp()), 0.4, math.exp(0.4)),
        (lambda x: td.ContinuousBernoulli(logits=x), 0.0, 1 / 12),
        (lambda x: td.ContinuousBernoulli(logits=x), 3.0, 1 / 9 - 0.25 / math.sinh(1.5) ** 2),
        (lambda x: td.VonMises(x, 2.0), 0.4, 2 * 0.697774657964008),
        (lambda x: td.Weibull(x.exp(), 1.7), 0.4, 1.7**2),
        (lambda x: td.MultivariateNormal(x.expand(2), 2 * torch.eye(2).double()), 0.4, 1.0),
        (lambda x: td.Wishart(x, torch.eye(1).double()), 3.0, math.pi**2 / 8 - 1),
    ],
)
def test_the_hessian_at_equality_is_the_fisher_information(family, theta, fisher):
    """What TRPO and natural gradients use; a clamp or a tie there would make it 0."""
    at = torch.tensor(theta, dtype=F64)
    p = family(at)
    hessian = torch.autograd.functional.hessian(lambda x: kl_divergence(p, family(x)), at)
    assert kl_divergence(p, p).item() == 0
    assert hessian.item() == pytest.approx(fisher, rel=1e-6)
