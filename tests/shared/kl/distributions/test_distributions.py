"""What the function does with the pairs: nesting, transforms, precision, Monte Carlo, errors."""

import math

import mpmath
import pytest
import torch
from scipy import integrate, stats
from torch import distributions as td
from torch.distributions import kl as torch_kl
from torch.distributions import transforms as tt

from shared.kl.distributions.kl_divergence import kl_divergence
from shared.kl.samples.estimate import KLEstimate

INF = math.inf
F64 = torch.float64
LN2 = math.log(2)


def interior(rng, *shape, low=0.2, high=2.0):
    return low + (high - low) * torch.rand(shape, generator=rng, dtype=F64)


def scalars(*values):
    return [torch.tensor(v, dtype=F64) for v in values]


def fold(scale):
    return td.TransformedDistribution(td.Normal(scale, 1.0), tt.AbsTransform())


def test_transforms_that_merge_outcomes_are_refused():
    with pytest.raises(ValueError, match=r"AbsTransform.*only an upper bound"):
        kl_divergence(fold(1.0), fold(-1.0))
    softmax = [
        td.TransformedDistribution(td.Normal(torch.zeros(3), s), tt.SoftmaxTransform())
        for s in (1.0, 2.0)
    ]
    with pytest.raises(ValueError, match="SoftmaxTransform"):
        kl_divergence(*softmax)
    composed = td.TransformedDistribution(
        td.Normal(0.0, 1.0), tt.ComposeTransform([tt.AbsTransform(), tt.ExpTransform()])
    )
    with pytest.raises(ValueError, match="ComposeTransform"):
        kl_divergence(composed, composed)


def test_one_to_one_transforms_keep_the_divergence_of_the_bases():
    p, q = td.Normal(0.3, 0.7), td.Normal(-0.2, 1.1)
    base = kl_divergence(p, q)
    chain = [tt.AffineTransform(1.0, -2.0), tt.TanhTransform()]
    moved = [td.TransformedDistribution(d, chain) for d in (p, q)]
    assert kl_divergence(*moved) == base
    assert kl_divergence(td.LogNormal(0.3, 0.7), td.LogNormal(-0.2, 1.1)) == base
    bernoullis = [
        td.TransformedDistribution(td.Bernoulli(logits=torch.tensor(x)), tt.AffineTransform(0, 2))
        for x in (0.0, 20.0)
    ]
    assert kl_divergence(*bernoullis).item() == pytest.approx(10 - LN2, rel=1e-6)
    for d in (td.LogNormal(0.0, 1.0), moved[0]):
        with pytest.raises(NotImplementedError, match=r"monte_carlo"):
            kl_divergence(d, moved[1] if d is not moved[0] else td.LogNormal(0.0, 1.0))


def test_categorical_and_one_hot_are_the_same_law():
    a, b = scalars([[0.2, 0.5, 0.3]] * 4, [0.6, 0.1, 0.3])
    truth = kl_divergence(td.Categorical(a), td.Categorical(b))
    assert truth.shape == (4,)
    for p in (td.Categorical(a), td.OneHotCategorical(a)):
        for q in (
            td.Categorical(b),
            td.OneHotCategorical(b),
            td.OneHotCategoricalStraightThrough(b),
        ):
            assert torch.equal(kl_divergence(p, q), truth)
    with pytest.raises(ValueError, match="same categories, got 3 and 1"):
        kl_divergence(td.Categorical(a), td.Categorical(torch.ones(1)))


def test_independent_normals_with_a_multivariate_normal_both_ways():
    rng = torch.Generator().manual_seed(0)
    loc, scale = interior(rng, 5, 3), interior(rng, 5, 3)
    tril = torch.tril(interior(rng, 3, 3))
    independent = td.Independent(td.Normal(loc, scale), 1)
    full = td.MultivariateNormal(loc[0] + 1, scale_tril=tril)
    diagonal = td.MultivariateNormal(loc, torch.diag_embed(scale**2))
    torch.testing.assert_close(
        kl_divergence(independent, full), torch_kl.kl_divergence(diagonal, full)
    )
    torch.testing.assert_close(
        kl_divergence(full, independent), torch_kl.kl_divergence(full, diagonal)
    )
    for other in (td.Independent(td.Laplace(loc, scale), 1), td.Independent(full.expand((3,)), 1)):
        with pytest.raises((NotImplementedError, ValueError), match=r"monte_carlo|event shape"):
            kl_divergence(other, full)


@pytest.mark.parametrize("given", ["covariance_matrix", "scale_tril"])
def test_multivariate_normals_of_float32_keep_their_digits(given):
    rng = torch.Generator().manual_seed(2)
    tril = torch.tril(torch.randn(4, 4, generator=rng)) * 0.2 + torch.eye(4)
    first = tril if given == "scale_tril" else tril @ tril.mT
    second = first + 1e-4 * torch.eye(4)
    p, q = (td.MultivariateNormal(torch.zeros(4), **{given: x}) for x in (first, second))
    value = kl_divergence(p, q)
    wide = (
        td.MultivariateNormal(torch.zeros(4, dtype=F64), **{given: x.double()})
        for x in (first, second)
    )
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(torch_kl.kl_divergence(*wide).item(), rel=1e-5)


def test_normals_of_float32_keep_their_digits():
    p, q = td.Normal(torch.tensor(0.5), torch.tensor(1.0)), td.Normal(0.5, torch.tensor(1.0001))
    ratio = mpmath.mpf(1) / mpmath.mpf(q.scale.item())
    truth = (ratio**2 - 1) / 2 - mpmath.log(ratio)
    assert kl_divergence(p, q).item() == pytest.approx(float(truth), rel=1e-6)
    assert torch_kl.kl_divergence(p, q).item() != pytest.approx(float(truth), rel=1e-4)


def test_independent_sums_the_repaired_pairs():
    logits = torch.tensor([[0.0, 0.0], [20.0, 0.0]])
    p = td.Independent(td.Bernoulli(logits=torch.zeros(2, 2)), 1)
    value = kl_divergence(p, td.Independent(td.Bernoulli(logits=logits), 1))
    torch.testing.assert_close(value, torch.tensor([0.0, 10 - LN2]))
    nested = td.Independent(td.Bernoulli(logits=logits), 2)
    assert kl_divergence(nested, nested).shape == ()
    whole = td.Independent(td.Bernoulli(logits=torch.zeros(2, 2)), 2)
    assert kl_divergence(whole, nested).item() == pytest.approx(10 - LN2, rel=1e-6)
    with pytest.raises(ValueError, match="same event shape"):
        kl_divergence(p, td.Independent(td.Bernoulli(torch.ones(2, 1)), 1))


class Counts(td.ExponentialFamily):
    """A Poisson of one's own, whose second natural parameter is made from the first."""

    arg_constraints = {"rate": td.constraints.positive}  # noqa: RUF012
    support = td.constraints.nonnegative_integer

    def __init__(self, rate):
        self.rate = rate
        super().__init__(rate.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Counts(self.rate.expand(batch_shape))

    @property
    def _natural_params(self):
        half = self.rate.log() / 2
        return half, half * 1.0

    def _log_normalizer(self, a, b):
        return (a + b).exp()


def test_exponential_families_of_ones_own_have_the_right_gradients():
    a = torch.tensor([[0.5], [2.0]], dtype=F64, requires_grad=True)
    b = torch.tensor([1.0, 2.5, 0.3], dtype=F64, requires_grad=True)
    value = kl_divergence(Counts(a), Counts(b))
    torch.testing.assert_close(value, a * (a / b).log() - a + b)
    torch_value = torch_kl.kl_divergence(Counts(a.detach()), Counts(b))
    torch.testing.assert_close(value, torch_value)
    assert torch.autograd.gradcheck(lambda x, y: kl_divergence(Counts(x), Counts(y)), (a, b))
    assert torch.autograd.gradgradcheck(lambda x, y: kl_divergence(Counts(x), Counts(y)), (a, b))
    assert not kl_divergence(Counts(a.detach()), Counts(b.detach())).requires_grad
    with torch.no_grad():
        assert torch.equal(kl_divergence(Counts(a), Counts(b)), value)


def test_wishart_gradients_and_batches():
    rng = torch.Generator().manual_seed(4)
    tril = torch.tril(interior(rng, 2, 3, 3))
    df_p = torch.tensor([4.0, 6.5], dtype=F64, requires_grad=True)
    df_q = torch.tensor([5.0, 5.0], dtype=F64, requires_grad=True)

    def kl(df_p, df_q, tril_p):
        return kl_divergence(
            td.Wishart(df_p, scale_tril=tril_p), td.Wishart(df_q, scale_tril=tril.flip(0))
        )

    value = kl(df_p, df_q, tril)
    for i in range(2):  # torch is right where there is no batch
        p = td.Wishart(df_p[i], scale_tril=tril[i])
        q = td.Wishart(df_q[i], scale_tril=tril[1 - i])
        torch.testing.assert_close(value[i], torch_kl.kl_divergence(p, q))
    leaf = tril.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b, c: kl(a, b, c.tril()), (df_p, df_q, leaf))


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (td.Normal(0.3, 0.5), td.Normal(-0.4, 0.9)),
        (td.Poisson(3.0), td.Poisson(2.0)),
        (td.Categorical(torch.tensor([0.2, 0.8])), td.Categorical(torch.tensor([0.6, 0.4]))),
        (td.Gamma(2.0, 1.0), td.Gamma(1.5, 0.5)),
        (td.Dirichlet(torch.tensor([1.0, 2.0, 3.0])), td.Dirichlet(torch.tensor([2.0, 2.0, 1.5]))),
        (td.NegativeBinomial(3.5, torch.tensor(0.4)), td.NegativeBinomial(3.5, torch.tensor(0.6))),
        (td.VonMises(0.3, 2.0), td.VonMises(-1.0, 0.7)),
        (td.Weibull(1.5, 2.0), td.Weibull(0.7, 1.2)),
        (
            td.MultivariateNormal(torch.zeros(2), torch.eye(2)),
            td.Independent(td.Normal(torch.ones(2), 2 * torch.ones(2)), 1),
        ),
    ],
    ids=lambda d: type(d).__name__,
)
def test_monte_carlo_within_five_standard_errors(p, q):
    torch.manual_seed(0)
    estimate = kl_divergence(p, q, "monte_carlo", samples=20_000)
    assert isinstance(estimate, KLEstimate)
    truth = kl_divergence(p, q)
    assert (estimate.mean - truth).abs() < 5 * estimate.stderr
    assert estimate.stderr < 0.05 * truth
    assert estimate.n == 20_000
    assert estimate.minimum < estimate.mean


def test_monte_carlo_serves_pairs_without_a_closed_form():
    p, q = td.StudentT(5.0), td.Normal(0.0, 1.3)
    with pytest.raises(NotImplementedError, match=r"StudentT and q Normal.*monte_carlo"):
        kl_divergence(p, q)
    torch.manual_seed(1)
    estimate = kl_divergence(p, q, method="monte_carlo", samples=50_000)
    t, normal = stats.t(5), stats.norm(0, 1.3)
    truth, _ = integrate.quad(lambda x: t.pdf(x) * (t.logpdf(x) - normal.logpdf(x)), -200, 200)
    assert abs(estimate.mean.item() - truth) < 5 * estimate.stderr.item()
    torch.manual_seed(1)
    in_bits = kl_divergence(p, q, method="monte_carlo", samples=50_000, unit="bits")
    for bits, nats in zip(in_bits, estimate, strict=True):
        if isinstance(nats, torch.Tensor):
            torch.testing.assert_close(bits * LN2, nats)


def test_monte_carlo_draws_for_every_element_and_sees_missing_support():
    torch.manual_seed(2)
    estimate = kl_divergence(
        td.Normal(torch.tensor(0.0, requires_grad=True), 1.0),
        td.Normal(torch.zeros(500), 1.1),
        "monte_carlo",
        samples=4,
    )
    assert estimate.mean.shape == (500,)
    assert estimate.mean.unique().numel() > 400
    assert not estimate.mean.requires_grad
    outside = kl_divergence(td.Normal(0.0, 1.0), td.Exponential(1.0), "monte_carlo", samples=50)
    assert outside.mean.item() == INF
    box = td.Independent(td.Uniform(torch.zeros(2), torch.ones(2)), 1)
    wide = td.MultivariateNormal(torch.zeros(2), torch.eye(2))
    assert kl_divergence(wide, box, "monte_carlo", samples=50).mean.item() == INF


@pytest.mark.parametrize(
    ("call", "match"),
    [
        ({"method": "mc"}, 'method must be "exact" or "monte_carlo", got \'mc\''),
        ({"method": "monte_carlo"}, "samples must be at least 2, got None"),
        ({"method": "monte_carlo", "samples": 1}, "samples must be at least 2, got 1"),
        ({"samples": 10}, "samples is for"),
        ({"unit": "bit"}, "unit must be one of"),
    ],
)
def test_bad_options_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        kl_divergence(td.Normal(0.0, 1.0), td.Normal(0.0, 1.0), **call)


@pytest.mark.parametrize(
    ("p", "q", "match"),
    [
        (td.Normal(torch.zeros(2), 1.0), td.Normal(torch.zeros(3), 1.0), "do not broadcast"),
        (td.Normal(0.0, 1.0), td.MultivariateNormal(torch.zeros(2), torch.eye(2)), "event shape"),
        (td.OneHotCategorical(torch.ones(3)), td.OneHotCategorical(torch.ones(2)), "categories"),
    ],
)
def test_bad_shapes_are_named(p, q, match):
    with pytest.raises(ValueError, match=match):
        kl_divergence(p, q)


def test_a_probability_is_not_compared_with_a_density():
    with pytest.raises(ValueError, match="not both discrete or both continuous"):
        kl_divergence(td.Bernoulli(0.5), td.Normal(0.0, 1.0), "monte_carlo", samples=10)


def test_units():
    p, q = td.Bernoulli(torch.tensor(0.5)), td.Bernoulli(torch.tensor(0.9))
    assert kl_divergence(p, q, unit="bits").item() == pytest.approx(0.736965594166206, rel=1e-6)
    assert kl_divergence(p, q, unit="hartleys").item() == pytest.approx(0.221848749616356, rel=1e-6)


class Own(td.Normal):
    pass


def test_a_pair_of_ones_own_wins_and_nothing_of_ours_is_registered():
    before = dict(torch_kl._KL_REGISTRY)
    p = Own(0.0, 1.0)
    assert kl_divergence(p, td.Normal(0.0, 2.0)) == kl_divergence(
        td.Normal(0.0, 1.0), td.Normal(0.0, 2.0)
    )
    torch_kl.register_kl(Own, Own)(lambda p, _: p.loc + 42)
    try:
        assert kl_divergence(p, p).item() == 42
    finally:
        del torch_kl._KL_REGISTRY[Own, Own]
        torch_kl._KL_MEMOIZE.clear()
    assert before == torch_kl._KL_REGISTRY
