"""Mutual information by nearest neighbours: its definition by loops, Gaussians, scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_regression

from shared.kl import mutual_information_knn


def correlated(n, rho, d=1, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(n, d, generator=rng, dtype=torch.float64) for _ in "xy")
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def by_loops(x, y, k):
    n, total = len(x), 0.0
    for i in range(n):
        dx = [math.dist(x[i], x[j]) for j in range(n) if j != i]
        dy = [math.dist(y[i], y[j]) for j in range(n) if j != i]
        radius = sorted(map(max, dx, dy))[k - 1]
        n_x, n_y = (sum(distance < radius for distance in part) for part in (dx, dy))
        total += digamma(n_x + 1) + digamma(n_y + 1)
    return digamma(k) + digamma(n) - total / n


@pytest.mark.parametrize(("d", "k"), [(1, 1), (1, 3), (2, 2), (3, 5)])
def test_it_is_its_definition(d, k):
    x, y = correlated(40, 0.7, d)
    y = y[:, : max(1, d - 1)]
    expected = by_loops(x.numpy(), y.numpy(), k)
    assert mutual_information_knn(x, y, k).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_gaussians(rho):
    """-log(1 - rho^2) / 2 nats in each dimension; the scatter of ten estimates covers it."""
    truth = -0.5 * math.log(1 - rho**2)
    for d in (1, 2):
        values = [
            mutual_information_knn(*correlated(1500, rho, d, seed)).item() for seed in range(10)
        ]
        error = np.std(values, ddof=1) / math.sqrt(10)
        assert np.mean(values) == pytest.approx(d * truth, abs=4 * error + 0.04 * d * truth)


def test_against_scikit_learn():
    x, y = correlated(500, 0.8)
    theirs = mutual_info_regression(x.numpy(), y[:, 0].numpy(), n_neighbors=3, random_state=0)[0]
    assert mutual_information_knn(x, y, 3).item() == pytest.approx(theirs, abs=0.02)


def test_units_types_and_the_scale_of_one_side():
    x, y = correlated(200, 0.8)
    value = mutual_information_knn(x, y)
    assert value.dtype == torch.float64
    bits = mutual_information_knn(x, y, unit="bits")
    assert bits.item() == pytest.approx(value.item() / math.log(2))
    assert mutual_information_knn(y, x).item() == pytest.approx(value.item(), rel=1e-12)


def test_what_is_refused():
    x, y = correlated(10, 0.5)
    with pytest.raises(ValueError, match="2 of the 10 points are at distance 0"):
        mutual_information_knn(torch.cat([x[:9], x[:1]]), torch.cat([y[:9], y[:1]]), 1)
    for k in (0, 10):
        with pytest.raises(ValueError, match=f"k must be from 1 to n - 1 = 9, got {k}"):
            mutual_information_knn(x, y, k)
    with pytest.raises(ValueError, match="x has 10 rows and y has 9"):
        mutual_information_knn(x, y[:9])
    with pytest.raises(ValueError, match=r"y must be \[samples, dimensions\]"):
        mutual_information_knn(x, y[:, 0])
    with pytest.raises(ValueError, match="x must be a floating-point"):
        mutual_information_knn(x.int(), y)
