"""Full Gaussians, all divergences: derivatives, diagonal forms, scales, shapes, bad arguments."""

import math

import pytest
import torch

from shared.kl.gaussian.diagonal import (
    bhattacharyya_normal,
    kl_normal,
    renyi_normal,
    squared_hellinger_normal,
    squared_wasserstein2_normal,
)
from shared.kl.gaussian.full import (
    bhattacharyya_mvn,
    kl_mvn,
    kl_mvn_from_scale_tril,
    renyi_mvn,
    squared_hellinger_mvn,
)
from shared.kl.gaussian.wasserstein import squared_wasserstein2_mvn
from tests.shared.kl.gaussian.random_gaussians import F64, gaussians


def symmetric(function):
    """With covariances L L^T, so that finite differences stay symmetric and definite."""

    def of_factors(mu_p, a, mu_q, b):
        eye = torch.eye(a.shape[-1], dtype=a.dtype)
        return function(mu_p, a @ a.mT + eye, mu_q, b @ b.mT + 2 * eye)

    return of_factors


@pytest.mark.parametrize(
    ("function", "second"),
    [
        (kl_mvn, True),
        (lambda *given: renyi_mvn(*given, 0.4), True),
        (lambda *given: renyi_mvn(*given, 1.05), True),
        (squared_hellinger_mvn, True),
        (bhattacharyya_mvn, False),
        (squared_wasserstein2_mvn, False),
    ],
)
def test_gradients(function, second):
    rng = torch.Generator().manual_seed(9)
    shapes = [(2, 2), (2, 2, 2), (2,), (2, 2)]
    inputs = [torch.randn(s, generator=rng, dtype=F64).requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(symmetric(function), inputs)
    if second:
        assert torch.autograd.gradgradcheck(symmetric(function), inputs)


def test_gradient_of_the_kl_at_equality_is_zero_and_its_hessian_the_fisher_matrix():
    mu = torch.tensor([0.3, -0.2], dtype=F64)
    cov = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
    hessian = torch.autograd.functional.hessian(lambda m: kl_mvn(mu, cov, m, cov), mu)
    torch.testing.assert_close(hessian, torch.linalg.inv(cov), rtol=1e-12, atol=1e-14)
    for argument in (1, 3):
        given = [mu, cov, mu, cov.clone()]
        given[argument] = given[argument].clone().requires_grad_()
        for function in (kl_mvn, squared_wasserstein2_mvn, bhattacharyya_mvn):
            (grad,) = torch.autograd.grad(function(*given), given[argument])
            assert grad.abs().max() < 1e-13


def test_a_diagonal_embedded_is_the_sum_over_dimensions():
    rng = torch.Generator().manual_seed(11)
    mu_p, mu_q = (torch.randn(5, 3, generator=rng, dtype=F64) for _ in range(2))
    logvar_p = torch.randn(5, 3, generator=rng, dtype=F64) - 2
    logvar_q = torch.randn(5, 3, generator=rng, dtype=F64)
    diagonal = mu_p, logvar_p, mu_q, logvar_q
    full = mu_p, torch.diag_embed(logvar_p.exp()), mu_q, torch.diag_embed(logvar_q.exp())
    for one, other in (
        (kl_normal(*diagonal).sum(-1), kl_mvn(*full)),
        (squared_wasserstein2_normal(*diagonal).sum(-1), squared_wasserstein2_mvn(*full)),
        (bhattacharyya_normal(*diagonal).sum(-1), bhattacharyya_mvn(*full)),
        (squared_hellinger_normal(*diagonal), squared_hellinger_mvn(*full)),
        *(
            (renyi_normal(*diagonal, order).sum(-1), renyi_mvn(*full, order))
            for order in (0.3, 1.0, 1.2, 3.0)
        ),
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("ratio", [1e-12, 1e-20, 1e12])
def test_very_different_scales(ratio):
    mu = torch.zeros(2, dtype=F64)
    cov = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=F64)
    value = kl_mvn(mu, ratio**2 * cov, mu, cov).item()
    assert value == pytest.approx(ratio**2 - 1 - math.log(ratio**2), rel=1e-12)
    for order in (0.3, 0.9):
        mixed = math.log(order + (1 - order) * ratio**2)
        truth = mixed / (1 - order) - math.log(ratio**2)
        renyi = renyi_mvn(mu, ratio**2 * cov, mu, cov, order).item()
        assert renyi == pytest.approx(truth, rel=1e-9)


def test_shapes_broadcast_and_half_precision_returns_float32():
    mu_p, cov_p, mu_q, cov_q = gaussians(0, 5, 1)
    others = gaussians(1, 4)[2:]
    functions = (
        kl_mvn,
        bhattacharyya_mvn,
        squared_hellinger_mvn,
        squared_wasserstein2_mvn,
        lambda *given: renyi_mvn(*given, 0.7),
    )
    for function in functions:
        value = function(mu_p, cov_p, *others)
        assert value.shape == (5, 4)
        torch.testing.assert_close(
            value[2, 3], function(mu_p[2, 0], cov_p[2, 0], others[0][3], others[1][3])
        )
        half = function(*(x.to(torch.bfloat16) for x in (mu_p, cov_p, mu_q, cov_q)))
        assert half.dtype == torch.float32
        assert half.shape == (5, 1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cov_p": -torch.eye(2)}, "cov_p is not positive (semi-)?definite"),
        (
            {"cov_q": torch.diag(torch.tensor([1.0, -1.0]))},
            "cov_q is not positive (semi-)?definite",
        ),
        ({"cov_q": torch.full((2, 2), math.nan)}, "cov_q"),
        ({"cov_p": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, "cov_p is not symmetric"),
        ({"cov_p": torch.eye(3)}, r"cov_p must have shape \[\.\.\., 2, 2\]"),
        ({"mu_q": torch.zeros(3)}, r"mu_q must have shape \[\.\.\., 2\]"),
        ({"mu_p": torch.zeros(())}, "mu_p must have shape"),
        ({"mu_p": torch.zeros(2, dtype=torch.int64)}, "mu_p must be a floating-point"),
        ({"mu_p": torch.zeros(3, 2), "mu_q": torch.zeros(4, 2)}, "do not broadcast"),
    ],
)
def test_bad_arguments_are_named(change, match):
    given = {
        "mu_p": torch.zeros(2),
        "cov_p": torch.eye(2),
        "mu_q": torch.zeros(2),
        "cov_q": torch.eye(2),
    } | change
    for function in (kl_mvn, squared_wasserstein2_mvn, bhattacharyya_mvn):
        with pytest.raises(ValueError, match=match):
            function(**given)


def test_bad_factors_and_orders_are_named():
    mu, eye = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match="scale_tril_q must have a positive diagonal"):
        kl_mvn_from_scale_tril(mu, eye, mu, -eye)
    for order in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="order"):
            renyi_mvn(mu, eye, mu, eye, order)
        with pytest.raises(ValueError, match="order"):
            renyi_normal(mu, mu, mu, mu, order)
