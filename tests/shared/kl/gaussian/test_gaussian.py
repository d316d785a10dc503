import math

import mpmath
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from shared.kl import kl_normal, kl_standard_normal, normal_log_prob
from tests.shared.kl.gaussian.normals import TINY, exact_kl, f64, finite

near_zero = st.floats(-(2**-10), 2**-10, width=32)


def quadrature_kl(mu_p, logvar_p, mu_q, logvar_q):
    p = norm(mu_p, math.exp(logvar_p / 2))
    q = norm(mu_q, math.exp(logvar_q / 2))
    width = 12 * p.std()
    value, _ = quad(
        lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)),
        mu_p - width,
        mu_p + width,
        epsabs=1e-13,
        epsrel=1e-12,
        limit=400,
    )
    return value


@pytest.mark.parametrize(
    "arguments",
    [(0.3, 0.0, 0.0, 0.0), (1.5, -2.0, -0.5, 0.7), (0.0, 1.2, 0.0, -1.0), (-2.0, 0.24, 1.0, 0.0)],
)
def test_kl_normal_is_the_integral_of_p_log_p_over_q(arguments):
    assert kl_normal(*f64(*arguments)).item() == pytest.approx(
        quadrature_kl(*arguments), rel=1e-9, abs=0
    )


@pytest.mark.parametrize(("mu", "logvar"), [(0.0, -3.0), (0.7, 0.2), (-2.5, 1.8), (1e-3, 1e-3)])
def test_kl_standard_normal_is_the_integral_of_p_log_p_over_a_standard_normal(mu, logvar):
    value = kl_standard_normal(*f64(mu, logvar)).item()
    assert value == pytest.approx(quadrature_kl(mu, logvar, 0.0, 0.0), rel=1e-7, abs=0)


@pytest.mark.parametrize("logvar", TINY)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_tiny_log_variances_keep_all_digits(logvar, dtype, tolerance):
    v = torch.tensor(logvar, dtype=dtype)
    truth = exact_kl(0, v.item(), 0, 0)
    zero = torch.zeros((), dtype=dtype)
    for value in (kl_standard_normal(zero, v), kl_normal(zero, v, zero, zero)):
        assert abs(value.item() / truth - 1) < tolerance


def test_the_naive_form_would_fail_the_test_above():
    v = torch.tensor(1e-4)
    naive = 0.5 * (v.exp() - 1 - v)
    assert abs(naive.item() / exact_kl(0, v.item(), 0, 0) - 1) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("centre", [0.25, -0.25, 0.0])
def test_fifty_digits_agree_on_both_sides_of_the_series_threshold(centre, dtype):
    around = centre + torch.linspace(-0.02, 0.02, 41, dtype=dtype)
    around = torch.cat([around, torch.tensor([math.nextafter(centre, s) for s in (-9.0, 9.0)])])
    value = kl_standard_normal(torch.zeros((), dtype=dtype), around)
    for v, kl in zip(around.tolist(), value.tolist(), strict=True):
        assert abs(kl - exact_kl(0, v, 0, 0)) <= 12 * torch.finfo(dtype).eps * exact_kl(0, v, 0, 0)


def test_gradients_near_zero_are_half_of_expm1():
    v = torch.tensor([0.0, *TINY, 0.2499, 0.2501, -0.25], requires_grad=True)
    (grad,) = torch.autograd.grad(kl_standard_normal(torch.zeros(()), v).sum(), v)
    truth = torch.tensor([float(mpmath.expm1(x) / 2) for x in v.tolist()])
    torch.testing.assert_close(grad, truth, rtol=1e-6, atol=0)


@given(mu_p=finite, logvar_p=finite, mu_q=finite, logvar_q=finite)
def test_kl_is_never_negative(mu_p, logvar_p, mu_q, logvar_q):
    values = [torch.tensor(v) for v in (mu_p, logvar_p, mu_q, logvar_q)]
    assert kl_normal(*values).item() >= 0
    assert kl_standard_normal(*values[:2]).item() >= 0


@given(logvar=near_zero, other=near_zero)
@example(logvar=0.25, other=0.0)
def test_kl_is_never_negative_where_it_cancels(logvar, other):
    zero, v, w = torch.zeros(()), torch.tensor(logvar), torch.tensor(other)
    assert kl_normal(zero, v, zero, w).item() >= 0
    assert kl_standard_normal(zero, v).item() >= 0


@given(mu=finite, logvar=finite)
def test_kl_of_a_distribution_and_itself_is_exactly_zero(mu, logvar):
    m, v = torch.tensor(mu), torch.tensor(logvar)
    assert kl_normal(m, v, m, v).item() == 0
    assert kl_standard_normal(torch.zeros(()), torch.zeros(())).item() == 0


def test_monte_carlo_within_four_standard_errors():
    mu_p, logvar_p, mu_q, logvar_q = f64(0.8, -0.6, -0.4, 0.9)
    eps = torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = mu_p + eps * (logvar_p / 2).exp()
    draws = normal_log_prob(x, mu_p, logvar_p) - normal_log_prob(x, mu_q, logvar_q)
    error = draws.std() / math.sqrt(len(draws))
    assert error < 0.01
    assert abs(draws.mean() - kl_normal(mu_p, logvar_p, mu_q, logvar_q)) < 4 * error


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_torch_distributions_agree_and_shapes_broadcast(dtype, rtol):
    rng = torch.Generator().manual_seed(2)
    shapes = [(5, 1, 3), (4, 3), (3,), (5, 4, 1)]
    mu_p, logvar_p, mu_q, logvar_q = (
        torch.randn(shape, generator=rng, dtype=dtype) for shape in shapes
    )
    p, q = Normal(mu_p, (logvar_p / 2).exp()), Normal(mu_q, (logvar_q / 2).exp())
    value = kl_normal(mu_p, logvar_p, mu_q, logvar_q)
    assert value.shape == (5, 4, 3)
    assert value.dtype == dtype
    torch.testing.assert_close(value, kl_divergence(p, q), rtol=rtol, atol=0)
    standard = Normal(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))
    value = kl_standard_normal(mu_p, logvar_p)
    assert value.dtype == dtype
    torch.testing.assert_close(value, kl_divergence(p, standard), rtol=rtol, atol=0)
    x = torch.randn(5, 4, 3, generator=rng, dtype=dtype)
    value = normal_log_prob(x, mu_p, logvar_p)
    assert value.dtype == dtype
    torch.testing.assert_close(value, p.log_prob(x), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("logvar", [-40.0, -2.0, 0.0, 3.0])
def test_log_prob_has_the_right_value_and_integrates_to_one(logvar):
    mu, sd = 0.3, math.exp(logvar / 2)
    for x in (mu, mu + sd, mu - 5 * sd):
        assert normal_log_prob(*f64(x, mu, logvar)).item() == pytest.approx(
            norm(mu, sd).logpdf(x), rel=1e-6
        )
    mass, _ = quad(
        lambda u: sd * math.exp(normal_log_prob(*f64(mu + sd * u, mu, logvar)).item()), -9, 9
    )
    assert mass == pytest.approx(1, rel=1e-7)


def test_overflow_of_the_variance_is_inf_and_not_nan():
    assert kl_standard_normal(torch.zeros(()), torch.tensor(100.0)).item() == math.inf
    assert kl_standard_normal(torch.zeros(()), torch.tensor(-1e4)).item() == pytest.approx(4999.5)


@pytest.mark.parametrize("logvar", [0.0, 1e-3, -0.2, 0.6, -2.0])
def test_first_and_second_derivatives(logvar):
    rng = torch.Generator().manual_seed(3)
    inputs = [torch.randn(3, generator=rng, dtype=torch.float64) for _ in range(4)]
    inputs[1] = torch.full((3,), logvar, dtype=torch.float64)
    inputs[3] = torch.zeros(3, dtype=torch.float64)
    inputs = [value.requires_grad_() for value in inputs]
    for function, used in ((kl_standard_normal, 2), (kl_normal, 4), (normal_log_prob, 3)):
        assert torch.autograd.gradcheck(function, inputs[:used])
        assert torch.autograd.gradgradcheck(function, inputs[:used])


@pytest.mark.parametrize("logvar", [-90.0, -170.0, -340.0])
def test_variances_whose_inverse_overflows_keep_their_kl(logvar):
    inputs = [torch.tensor(v, requires_grad=True) for v in (0.5, logvar + 2, 0.5, logvar)]
    value = kl_normal(*inputs)
    assert abs(value.item() / exact_kl(0, logvar + 2, 0, logvar) - 1) < 1e-5
    for grad, truth in zip(
        torch.autograd.grad(value, inputs), (0, 3.1945, 0, -3.1945), strict=True
    ):
        assert grad.item() == pytest.approx(truth, rel=1e-4)
    density = normal_log_prob(*(inputs[i] for i in (2, 0, 1)))
    assert density.item() == pytest.approx(-0.5 * (logvar + 2 + math.log(2 * math.pi)), rel=1e-6)


@pytest.mark.parametrize("logvar", [-90.0, -170.0])
def test_a_kl_that_overflows_is_inf_and_masking_it_leaves_no_nan(logvar):
    inputs = [torch.tensor(v, requires_grad=True) for v in (0.5, 0.0, 0.0, logvar)]
    value = kl_normal(*inputs)
    assert value.item() == math.inf
    for grad in torch.autograd.grad(torch.where(torch.tensor(False), value, 0.0), inputs):
        assert grad.item() == 0
