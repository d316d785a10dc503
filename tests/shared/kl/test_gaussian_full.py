import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import dblquad
from scipy.linalg import sqrtm
from scipy.stats import multivariate_normal
from torch.distributions import MultivariateNormal
from torch.distributions import kl_divergence as torch_kl

from shared.kl.gaussian import (
    bhattacharyya_normal,
    kl_normal,
    renyi_normal,
    squared_hellinger_normal,
    squared_wasserstein2_normal,
)
from shared.kl.gaussian_full import (
    bhattacharyya_mvn,
    kl_mvn,
    kl_mvn_from_scale_tril,
    renyi_mvn,
    squared_hellinger_mvn,
    squared_wasserstein2_mvn,
)

mpmath.mp.dps = 60
F64 = torch.float64
ORDERS = [0.02, 0.3, 0.5, 0.999, 1.0, 1.3]


def covariance(rng, *batch, d=3, scale=1.0, dtype=F64):
    factor = torch.randn(*batch, d, d, generator=rng, dtype=dtype)
    return scale * (factor @ factor.mT + torch.eye(d, dtype=dtype))


def gaussians(seed=0, *batch, d=3, dtype=F64):
    rng = torch.Generator().manual_seed(seed)
    mu_p, mu_q = (torch.randn(*batch, d, generator=rng, dtype=dtype) for _ in range(2))
    cov_p, cov_q = (covariance(rng, *batch, d=d, dtype=dtype) for _ in range(2))
    return mu_p, cov_p, mu_q, cov_q


def narrow_p(seed=0):
    """p narrower than q in every direction, so that every order is finite."""
    mu_p, cov_p, mu_q, cov_q = gaussians(seed, d=2)
    return mu_p, cov_p / 20, mu_q, cov_q + torch.eye(2, dtype=F64)


def exact_kl(mu_p, cov_p, mu_q, cov_q):
    """60 digits, from the textbook formula with an inverse and determinants."""
    p, q = (mpmath.matrix(cov.double().tolist()) for cov in (cov_p, cov_q))
    z = mpmath.matrix(mu_p.double().tolist()) - mpmath.matrix(mu_q.double().tolist())
    inverse = q**-1
    product = inverse * p
    trace = sum(product[i, i] for i in range(p.rows))
    return (trace - p.rows + (z.T * inverse * z)[0] - mpmath.log(mpmath.det(product))) / 2


def integral_of_powers(mu_p, cov_p, mu_q, cov_q, order):
    """The integral of p^order q^(1 - order) over the plane."""
    p = multivariate_normal(mu_p.numpy(), cov_p.numpy())
    q = multivariate_normal(mu_q.numpy(), cov_q.numpy())
    (x, y), width = mu_p.tolist(), 9 * cov_p.diagonal().sqrt().max().item()
    value, _ = dblquad(
        lambda v, u: math.exp(order * p.logpdf([u, v]) + (1 - order) * q.logpdf([u, v])),
        x - width, x + width, y - width, y + width, epsabs=1e-9, epsrel=1e-6,
    )  # fmt: skip
    return value


@pytest.mark.parametrize("seed", range(3))
def test_kl_agrees_with_sixty_digits_and_with_torch(seed):
    given = gaussians(seed)
    value = kl_mvn(*given)
    assert value.item() == pytest.approx(float(exact_kl(*given)), rel=1e-12)
    p, q = MultivariateNormal(*given[:2]), MultivariateNormal(*given[2:])
    torch.testing.assert_close(value, torch_kl(p, q), rtol=1e-10, atol=0)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_kl_of_neighbours_keeps_its_digits(size, dtype):
    """Down to a KL of 1e-12; at 1e-5 it is 1e-10."""
    rng = torch.Generator().manual_seed(7)
    cov_p = covariance(rng, d=4, dtype=dtype)
    shift = covariance(rng, d=4, dtype=dtype)
    mu_p = torch.randn(4, generator=rng, dtype=dtype)
    given = mu_p, cov_p, mu_p + size, cov_p + size * shift
    value = kl_mvn(*given)
    assert value.dtype == dtype
    truth = exact_kl(*given)  # of the rounded matrices
    assert abs(value.item() / truth - 1) < (2e-6 if dtype == torch.float32 else 1e-6)


def test_torch_in_float32_would_fail_the_test_above():
    given = gaussians(7, d=4, dtype=torch.float32)
    mu_p, cov_p = given[:2]
    close = cov_p + 1e-4 * given[3]
    naive = torch_kl(MultivariateNormal(mu_p, cov_p), MultivariateNormal(mu_p, close))
    assert abs(naive.item() / exact_kl(mu_p, cov_p, mu_p, close) - 1) > 0.01


def test_kl_of_ill_conditioned_float32_neighbours():
    rng = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(5, 5, generator=rng, dtype=F64)).Q
    spectrum = torch.logspace(-3, 3, 5, dtype=F64)
    cov = (basis * spectrum) @ basis.mT
    other = (basis * (spectrum * (1 + 1e-3))) @ basis.mT
    mu = torch.zeros(5, dtype=F64)
    value = kl_mvn(mu, cov, mu, other)
    assert value.item() == pytest.approx(float(exact_kl(mu, cov, mu, other)), rel=1e-5)


def test_kl_is_never_negative_and_zero_only_at_equality():
    rng = torch.Generator().manual_seed(1)
    cov = covariance(rng, 500, d=4, dtype=torch.float32)
    noise = covariance(rng, 500, d=4, dtype=torch.float32)
    mu = torch.zeros(4)
    assert (kl_mvn(mu, cov, mu, cov) == 0).all()
    for size in (1e-3, 1e-6, 1e-7):
        assert (kl_mvn(mu, cov, mu, cov + size * noise) >= 0).all()


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


def test_from_scale_tril_is_the_same_and_exact_for_float32_factors():
    mu_p, cov_p, mu_q, cov_q = gaussians(5, 4)
    trils = [torch.linalg.cholesky(cov) for cov in (cov_p, cov_q)]
    value = kl_mvn_from_scale_tril(mu_p, trils[0], mu_q, trils[1])
    torch.testing.assert_close(value, kl_mvn(mu_p, cov_p, mu_q, cov_q), rtol=1e-12, atol=0)
    tril = trils[0][0].float()
    close = tril.clone()
    close[1, 0] += 1e-4
    close[2, 2] += 1e-4
    mu = torch.zeros(3)
    wide = [t.double() @ t.double().mT for t in (tril, close)]
    truth = exact_kl(mu, wide[0], mu, wide[1])
    assert abs(kl_mvn_from_scale_tril(mu, tril, mu, close).item() / truth - 1) < 1e-6
    junk = tril + 5 * torch.ones(3, 3).triu(1)
    assert kl_mvn_from_scale_tril(mu, junk, mu, close) == kl_mvn_from_scale_tril(
        mu, tril, mu, close
    )


@pytest.mark.parametrize("order", [0.3, 0.5, 1.3])
def test_renyi_is_the_integral_of_powers(order):
    given = narrow_p()
    truth = math.log(integral_of_powers(*given, order)) / (order - 1)
    assert renyi_mvn(*given, order).item() == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("order", [0.3, 1.7, 4.0])
def test_renyi_agrees_with_the_determinants_of_the_paper(order):
    for seed in range(3):
        given = narrow_p(seed)
        mu_p, cov_p, mu_q, cov_q = (x.numpy() for x in given)
        mixed = order * cov_q + (1 - order) * cov_p
        logdet = [np.linalg.slogdet(m)[1] for m in (mixed, cov_p, cov_q)]
        z = mu_p - mu_q
        truth = 0.5 * order * z @ np.linalg.solve(mixed, z) - (
            logdet[0] - (1 - order) * logdet[1] - order * logdet[2]
        ) / (2 * (order - 1))
        assert renyi_mvn(*given, order).item() == pytest.approx(truth, rel=1e-10)


def test_renyi_has_its_limit_and_order_and_is_skew_symmetric():
    given = narrow_p(2)
    kl = kl_mvn(*given)
    torch.testing.assert_close(renyi_mvn(*given, 1.0), kl, rtol=1e-13, atol=0)
    for order in (1 - 1e-7, 1 + 1e-7, 1 + 1e-12):
        torch.testing.assert_close(renyi_mvn(*given, order), kl, rtol=1e-5, atol=0)
    values = torch.stack([renyi_mvn(*given, order) for order in (0.1, 0.5, 0.9, 1, 1.4, 3)])
    assert (values.diff() > 0).all()
    mu_p, cov_p, mu_q, cov_q = given
    for order in (0.2, 0.7):  # (1 - a) D_a(p || q) = a D_{1-a}(q || p)
        back = renyi_mvn(mu_q, cov_q, mu_p, cov_p, 1 - order)
        torch.testing.assert_close(
            (1 - order) * renyi_mvn(*given, order), order * back, rtol=1e-10, atol=0
        )


@pytest.mark.parametrize("order", [0.3, 0.5, 1.5, 2.0])
def test_renyi_of_neighbours_keeps_its_digits(order):
    """D_order is order times the KL to second order."""
    mu_p, cov_p, _, shift = gaussians(4)
    close = cov_p + 1e-6 * shift
    ratio = renyi_mvn(mu_p, cov_p, mu_p, close, order) / kl_mvn(mu_p, cov_p, mu_p, close)
    assert ratio.item() == pytest.approx(order, rel=1e-4)


def test_renyi_is_infinite_without_a_mixed_covariance_and_its_gradient_finite():
    mu = torch.zeros(2, 2, dtype=F64)
    cov_p = torch.stack([torch.eye(2, dtype=F64), 3 * torch.eye(2, dtype=F64)]).requires_grad_()
    cov_q = torch.eye(2, dtype=F64)
    value = renyi_mvn(mu, cov_p, mu, cov_q, 2.0)
    assert value.tolist() == [0, math.inf]
    (grad,) = torch.autograd.grad(value[0], cov_p)
    assert torch.isfinite(grad).all()
    assert renyi_mvn(mu, cov_p, mu, cov_q, 1.4)[1].isfinite()  # 1.4 - 0.4 * 3 > 0
    assert renyi_mvn(mu, cov_p, mu, cov_q, 1.51)[1] == math.inf  # 1.51 - 0.51 * 3 < 0


def test_bhattacharyya_and_hellinger_are_the_integral_of_the_root():
    given = narrow_p(1)
    coefficient = integral_of_powers(*given, 0.5)
    assert bhattacharyya_mvn(*given).item() == pytest.approx(-math.log(coefficient), rel=1e-4)
    assert squared_hellinger_mvn(*given).item() == pytest.approx(1 - coefficient, rel=1e-4)
    mu_p, cov_p, mu_q, cov_q = given
    torch.testing.assert_close(bhattacharyya_mvn(mu_q, cov_q, mu_p, cov_p),
                               bhattacharyya_mvn(*given), rtol=1e-12, atol=0)  # fmt: skip
    far = mu_p + 1000
    assert squared_hellinger_mvn(far, cov_p, mu_q, cov_q).item() == 1


@pytest.mark.parametrize("seed", range(4))
def test_wasserstein_agrees_with_matrix_roots_from_scipy(seed):
    given = gaussians(seed, d=4)
    mu_p, cov_p, mu_q, cov_q = (x.numpy() for x in given)
    root = sqrtm(cov_q)
    truth = np.sum((mu_p - mu_q) ** 2) + np.trace(
        cov_p + cov_q - 2 * np.real(sqrtm(root @ cov_p @ root))
    )
    assert squared_wasserstein2_mvn(*given).item() == pytest.approx(truth, rel=1e-10)


def test_wasserstein_by_hand_and_of_neighbours():
    mu = torch.zeros(2, dtype=F64)
    cov = torch.diag(torch.tensor([4.0, 9.0], dtype=F64))
    other = torch.diag(torch.tensor([1.0, 25.0], dtype=F64))
    assert squared_wasserstein2_mvn(mu, cov, mu + 2, other).item() == pytest.approx(8 + 1 + 4)
    for size in (1e-5, 1e-8):
        value = squared_wasserstein2_mvn(mu, cov, mu, (1 + size) * cov).item()
        assert value == pytest.approx(13 * (math.expm1(0.5 * math.log1p(size))) ** 2, rel=1e-6)
    assert squared_wasserstein2_mvn(mu, cov, mu, cov).item() < 1e-28


def test_wasserstein_refuses_a_second_derivative():
    given = [x.requires_grad_() for x in gaussians(1)]
    value = squared_wasserstein2_mvn(*given)
    with pytest.raises(RuntimeError, match="only once"):
        torch.autograd.grad(value, given[1], create_graph=True)


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


def test_shapes_broadcast_and_half_precision_returns_float32():
    mu_p, cov_p, mu_q, cov_q = gaussians(0, 5, 1)
    others = gaussians(1, 4)[2:]
    functions = (
        kl_mvn, bhattacharyya_mvn, squared_hellinger_mvn, squared_wasserstein2_mvn,
        lambda *given: renyi_mvn(*given, 0.7),
    )  # fmt: skip
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
        ({"cov_p": -torch.eye(2)}, "cov_p is not positive definite"),
        ({"cov_q": torch.ones(2, 2)}, "cov_q is not positive definite"),
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
        "mu_p": torch.zeros(2), "cov_p": torch.eye(2), "mu_q": torch.zeros(2),
        "cov_q": torch.eye(2),
    } | change  # fmt: skip
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
