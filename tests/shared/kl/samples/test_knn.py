import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from shared.kl.samples.knn import kl_knn


def draw(n, d, seed, mean=0.0, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, d, generator=rng, dtype=torch.float64)


def test_by_hand():
    # rho = 1, 1, 3 and nu = 0.25, 0.5, 2.5 in one dimension, n = 3, m = 2
    x = torch.tensor([[0.0], [1.0], [4.0]])
    y = torch.tensor([[0.25], [1.5]])
    terms = [math.log(0.25), math.log(0.5), math.log(2.5 / 3)]
    value = kl_knn(x, y, 1)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(sum(terms) / 3 + math.log(2 / 2), rel=1e-12)


@pytest.mark.parametrize(("n", "m", "d", "k"), [(40, 60, 1, 1), (60, 40, 3, 4), (9, 8, 2, 8)])
def test_against_all_distances_sorted(n, m, d, k):
    x, y = draw(n, d, 0), draw(m, d, 1, mean=0.5)
    rho = np.sort(cdist(x, x), axis=1)[:, k]
    nu = np.sort(cdist(x, y), axis=1)[:, k - 1]
    truth = d * np.mean(np.log(nu) - np.log(rho)) + np.log(m / (n - 1))
    assert kl_knn(x, y, k).item() == pytest.approx(truth, rel=1e-10)
    assert kl_knn(x, y, k, unit="bits").item() == pytest.approx(truth / math.log(2), rel=1e-10)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(("mean", "scale"), [(0.5, 1.0), (0.0, 0.7), (-0.5, 0.5), (0.0, 1.0)])
@pytest.mark.parametrize("d", [1, 2])
def test_gaussians(d, mean, scale, k):
    p = Normal(torch.full((d,), mean, dtype=torch.float64), scale)
    truth = kl_divergence(p, Normal(torch.zeros(d, dtype=torch.float64), 1.0)).sum().item()
    values = torch.stack(
        [kl_knn(draw(3000, d, 2 * s, mean, scale), draw(2000, d, 2 * s + 1), k) for s in range(5)]
    )
    assert abs(values.mean().item() - truth) < 0.04
    assert values.std() < 0.08


def test_correlated_gaussians():
    cov = torch.tensor([[1.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
    p = MultivariateNormal(torch.zeros(2, dtype=torch.float64), cov)
    q = MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2).double())
    x = draw(5000, 2, 0) @ p.scale_tril.T
    value = kl_knn(x, draw(5000, 2, 1), 3).item()
    assert value == pytest.approx(kl_divergence(p, q).item(), abs=0.06)


def test_the_order_of_arguments_is_that_of_the_mathematics():
    narrow, wide = draw(4000, 1, 0, scale=0.6), draw(4000, 1, 1)
    forward = kl_divergence(Normal(0.0, 0.6), Normal(0.0, 1.0)).item()
    backward = kl_divergence(Normal(0.0, 1.0), Normal(0.0, 0.6)).item()
    assert backward > 1.9 * forward
    assert kl_knn(narrow, wide, 1).item() == pytest.approx(forward, abs=0.06)


def test_where_p_reaches_beyond_q_the_estimate_is_low_and_more_so_with_k():
    truth = 2 * kl_divergence(Normal(0.0, 1.5), Normal(0.0, 1.0)).item()
    low, lower = (kl_knn(draw(3000, 2, 0, scale=1.5), draw(2000, 2, 1), k) for k in (1, 5))
    assert truth - 0.25 < lower < low - 0.05 < low < truth


def test_unchanged_by_shift_rotation_common_scale_and_order():
    x, y = draw(200, 2, 0), draw(150, 2, 1, mean=0.3)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    value = kl_knn(x, y, 2)
    torch.testing.assert_close(kl_knn(7 + 3 * x @ turn, 7 + 3 * y @ turn, 2), value)
    torch.testing.assert_close(kl_knn(x.flip(0), y.flip(0), 2), value)


def test_half_of_the_estimates_of_zero_are_negative():
    values = [kl_knn(draw(200, 1, 2 * s), draw(200, 1, 2 * s + 1), 1).item() for s in range(100)]
    assert 30 < sum(v < 0 for v in values) < 70


def test_distances_of_zero_are_refused_with_their_number():
    x, y = draw(20, 2, 0), draw(30, 2, 1)
    for a, b, number in [
        (torch.cat([x, x[:3]]), y, 6),
        (x, torch.cat([y, x[:4]]), 4),
        (x, x, 20),
        (torch.zeros(5, 1), -torch.zeros(2, 1), 5),
    ]:
        with pytest.raises(ValueError, match=f"^{number} of the {len(a)} points .* duplicates"):
            kl_knn(a, b, 1)


def test_repeated_points_count_as_neighbours_where_the_estimate_is_finite():
    x, y = draw(20, 2, 0), draw(30, 2, 1)
    x, y = torch.cat([x, x[:3]]), torch.cat([y, y[:2], x[:1]])
    to_x = (torch.cdist(x, x) + torch.diag(torch.full((23,), torch.inf))).sort(1).values
    to_y = torch.cdist(x, y).sort(1).values
    for k in (2, 3):
        ratio = (to_y[:, k - 1] / to_x[:, k - 1]).log()
        expected = 2 * ratio.mean() + math.log(33 / 22)
        assert kl_knn(x, y, k).item() == pytest.approx(expected.item())


def test_rounded_data_are_refused():
    with pytest.raises(ValueError, match="duplicates"):
        kl_knn(draw(500, 1, 0).round(decimals=1), draw(500, 1, 1).round(decimals=1), 1)


def test_many_dimensions_warn():
    x, y = draw(50, 5, 0), draw(50, 5, 1)
    with pytest.warns(UserWarning, match=r"in 5 dimensions are biased.*0\.44"):
        kl_knn(x, y, 1)
    kl_knn(x[:, :4], y[:, :4], 1)  # a warning would be an error


def test_the_bias_the_warning_speaks_of():
    shift = torch.zeros(20, dtype=torch.float64)
    shift[0] = 1.0
    with pytest.warns(UserWarning, match="in 20 dimensions"):
        value = kl_knn(draw(2000, 20, 0) + shift, draw(2000, 20, 1), 1).item()
    assert value < 0.42  # of 0.5


def test_bad_arguments_are_named():
    x, y = draw(5, 2, 0), draw(4, 2, 1)
    for arguments, message in [
        ((x, y, 0), "k must be from 1 to .* 4, got 0"),
        ((x, y, 5), "k must be from 1 to .* 4, got 5"),
        ((x, y[:2], 3), "k must be from 1 to .* 2, got 3"),
        ((x[:1], y, 1), "k must be from 1"),
        ((x, y[:, :1], 1), "x has 2 dimensions and y has 1"),
        ((x[:, 0], y, 1), r"x must be \[samples, dimensions\]"),
        ((x, y.long(), 1), "y must be a floating-point"),
        ((x * math.nan, y, 1), "x has values that are not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            kl_knn(*arguments)
    with pytest.raises(ValueError, match="unit"):
        kl_knn(x, y, 1, unit="dits")


def test_float32_and_tensors_with_a_graph():
    x, y = draw(50, 2, 0).float().requires_grad_(), draw(50, 2, 1).float()
    value = kl_knn(x, y, 2)
    assert not value.requires_grad
    assert value == kl_knn(x.detach().double(), y.double(), 2)
