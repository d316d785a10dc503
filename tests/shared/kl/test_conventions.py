"""Edges that the README's table of conventions names: rows, batches, infinities, temperatures."""

import math

import mpmath
import pytest
import torch
from torch import Tensor
from torch import tensor as t

import shared.kl as kl

INF = math.inf
PAIRS = sorted(
    {name for name in kl.__all__ if name.endswith("_from_logits")}
    - {"entropy_from_logits", "mutual_information_from_logits"}
)


def call(name: str, p: Tensor, q: Tensor, **options: object) -> Tensor:
    function = getattr(kl, name)
    if name in ("renyi_from_logits", "alpha_from_logits"):
        return function(p, q, 0.3, **options)
    if name == "f_divergence_from_logits":
        half = kl.FDivergence("TV", lambda d: -0.5 * torch.expm1(-d.abs()), 0.5, 0.5)
        return function(p, q, half, **options)
    return function(p, q, **options)


@pytest.mark.parametrize("name", PAIRS)
def test_a_row_without_any_category_is_nan(name: str) -> None:
    nowhere, somewhere = t([[-INF] * 3, [0.0, 1.0, 2.0]]), t([[0.0, 1.0, 2.0]] * 2)
    for p, q in ((nowhere, somewhere), (somewhere, nowhere), (nowhere, nowhere)):
        value = call(name, p, q)
        assert value[0].isnan().all()
        assert not value[1].isnan().any()
    assert kl.entropy_from_logits(nowhere).isnan().tolist() == [True, False]
    assert kl.chunked_kl(nowhere, somewhere)[0].isnan()


@pytest.mark.parametrize("name", sorted(set(PAIRS) - {"pointwise_kl_from_logits"}))
@pytest.mark.parametrize("reduction", ["sum", "batchmean", "positionmean"])
def test_an_empty_batch_is_zero(name: str, reduction: str) -> None:
    empty = torch.zeros(0, 5)
    expected = 1.0 if name.startswith("perplexity") else 0.0  # exp of the mean
    assert call(name, empty, empty, reduction=reduction) == expected


@pytest.mark.parametrize("dim", [-1, 0])
def test_categories_are_not_broadcast(dim: int) -> None:
    p, q = torch.ones(1, 1), torch.full((3, 3), 1 / 3)
    with pytest.raises(ValueError, match=r"p of shape .* different numbers of categories"):
        kl.kl_from_probs(p, q, dim=dim)
    with pytest.raises(ValueError, match=r"p_logits .* different numbers of categories"):
        kl.kl_from_logits(p, q, dim=dim)
    assert kl.kl_from_probs(torch.full((3,), 1 / 3), q).shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_probabilities_are_valid(dtype: torch.dtype) -> None:
    for size in (3, 7, 100):
        p = torch.full((size,), 1 / size).to(dtype)
        assert kl.kl_from_probs(p, p, validate=True) == 0
    with pytest.raises(ValueError, match="p is not normalised"):
        kl.entropy_from_probs(t([0.5, 0.6]).to(dtype), validate=True)


@pytest.mark.parametrize("temperature", [0.7, 3.0, 20.0])
@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_any_temperature_keeps_the_digits(temperature: float, size: float) -> None:
    mpmath.mp.dps = 50
    rng = torch.Generator().manual_seed(0)
    p = size + torch.randn(6, generator=rng)
    q = p + 4e-3 * torch.randn(6, generator=rng)
    a, b = ([mpmath.mpf(x) / temperature for x in row.tolist()] for row in (p, q))
    z_a, z_b = (mpmath.log(sum(map(mpmath.exp, row))) for row in (a, b))
    truth = sum(mpmath.exp(x - z_a) * ((x - z_a) - (y - z_b)) for x, y in zip(a, b, strict=True))
    value = kl.kl_from_logits(p, q, temperature=temperature)
    assert value.item() == pytest.approx(float(truth), rel=1e-4)


# -- Bernoulli -------------------------------------------------------------------------------------


def test_infinite_log_odds() -> None:
    x, odds = t([0.0, 1.0, 1.0, 0.0, 1.0]), t([-INF, 15.0, INF, INF, -INF])
    expected = t([0.0, -math.log1p(math.exp(-15)), 0.0, -INF, -INF])
    torch.testing.assert_close(kl.bernoulli_log_prob(x, odds), expected)
    p, q = t([-INF, INF, 0.0, 0.0, -INF, INF, INF]), t([0.0, 1.0, INF, -INF, -INF, INF, -INF])
    expected = t([math.log(2), math.log1p(math.exp(-1)), INF, INF, 0.0, 0.0, INF])
    torch.testing.assert_close(kl.kl_bernoulli(p, q), expected)


def test_gradients_at_infinite_log_odds_are_numbers() -> None:
    p = t([-INF, INF, 0.3, -INF]).requires_grad_()
    q = t([0.0, 2.0, INF, -INF]).requires_grad_()
    value = kl.kl_bernoulli(p, q)
    gradients = torch.autograd.grad(value[value.isfinite()].sum(), [p, q])
    torch.testing.assert_close(gradients[1], t([0.5, -(-t(2.0)).sigmoid().item(), 0.0, 0.0]))
    assert not gradients[0].isnan().any()
    odds = t([-INF, INF]).requires_grad_()
    (gradient,) = torch.autograd.grad(kl.bernoulli_log_prob(t([0.0, 1.0]), odds).sum(), odds)
    assert gradient.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("odds", [-30.0, -15.0, -1.0, 0.0, 1.0, 15.0, 30.0])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_the_likelier_outcome_keeps_its_digits(odds: float, x: float) -> None:
    truth = -math.log1p(math.exp(-odds if x else odds))
    assert kl.bernoulli_log_prob(t(x), t(odds)).item() == pytest.approx(truth, rel=1e-6)


# -- Others ----------------------------------------------------------------------------------------


def test_marginals_whose_product_underflows() -> None:
    joint = torch.diag(t([1.0, 1e-30]))
    truth = 1e-30 * (1 + 30 * math.log(10))
    assert kl.mutual_information_from_probs(joint).item() == pytest.approx(truth, rel=1e-5)
    logits = torch.where(joint > 0, joint.log(), -INF)
    assert kl.mutual_information_from_logits(logits).item() == pytest.approx(truth, rel=1e-4)


def test_what_underflows_is_still_in_the_support() -> None:
    p, q = t([0.0, -INF]), t([0.0, -120.0])
    assert kl.alpha_from_logits(p, q, 0.0) == INF  # D(q || p)
    assert kl.jeffreys_from_logits(p, q) == INF
    assert kl.kl_from_logits(q, p) == INF


def test_weights_of_any_size() -> None:
    for size in (-9e4, 0.0, 9e4):
        assert kl.effective_sample_size(torch.full((2,), size)) == 2
    weights = t([[0.0, -1.0, -2.0], [1e4, -1e4, -1e4]])
    w = weights[0].double().exp()
    expected = t([(w.sum() ** 2 / w.square().sum()).item(), 1.0])
    torch.testing.assert_close(kl.effective_sample_size(weights, dim=1), expected)


def test_an_infinite_log_variance() -> None:
    assert kl.kl_standard_normal(t(0.0), t(INF)) == INF
    assert kl.kl_standard_normal(t(300.0).half(), t(0.0).half()) == 45_000
