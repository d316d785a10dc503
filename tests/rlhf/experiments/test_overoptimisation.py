"""Best-of-n against all subsets and against sampling; fits against coefficients that are known."""

import itertools
import math

import pytest
import torch

from rlhf.experiments.overoptimisation import Fit, best_of_n, best_of_n_kl, fit


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def best_of_n_law(probs, scores, n):
    """The law of the best of n by enumeration of all samples, ties broken at random."""
    law = torch.zeros_like(probs)
    for drawn in itertools.product(range(len(probs)), repeat=n):
        best = max(scores[i] for i in drawn)
        winners = [i for i in drawn if scores[i] == best]
        for i in winners:
            law[i] += probs[list(drawn)].prod() / len(winners)
    return law


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_kl_of_best_of_n_is_a_bound_and_approached_by_many_small_outcomes(n):
    def kl(outcomes, scores=None):
        probs = torch.full((outcomes,), 1 / outcomes, dtype=torch.float64)
        law = best_of_n_law(probs, scores or list(range(outcomes)), n)
        return torch.special.xlogy(law, law / probs).sum().item()

    coarse, fine = kl(3), kl(12)
    assert coarse <= fine + 1e-12
    assert fine <= best_of_n_kl(n) + 1e-12
    assert best_of_n_kl(n) - fine < 0.03 * n
    assert kl(4, [0, 0, 0, 0]) == pytest.approx(0, abs=1e-12)  # all tied: nothing is chosen


@pytest.mark.parametrize("n", [2, 5, 64])
def test_kl_of_best_of_n_is_exact_for_continuous_scores(n):
    """The rank u of the best has the density n u^(n-1) on [0, 1], one sample's is uniform."""
    u = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    log_ratio = math.log(n) + (n - 1) * u.log()
    assert best_of_n_kl(n) == pytest.approx((log_ratio.exp() * log_ratio).mean().item(), abs=1e-5)


@pytest.mark.parametrize("n", range(1, 7))
def test_best_of_n_is_the_mean_over_all_subsets(n):
    proxy, gold = draw(3, 6), draw(3, 6, seed=1)
    proxy[2, 1] = proxy[2, 4]  # a tie: the later one wins
    expected = []
    for p, g in zip(proxy.tolist(), gold.tolist(), strict=True):
        subsets = list(itertools.combinations(range(6), n))
        chosen = [g[max(subset, key=lambda i: (p[i], i))] for subset in subsets]
        expected.append(sum(chosen) / len(subsets))
    torch.testing.assert_close(best_of_n(proxy, gold, n), torch.tensor(expected).double())


def test_best_of_n_is_unbiased_with_ties():
    """Over every set of three samples of a small law, weighted: the best of two fresh ones."""
    probs, scores = torch.tensor([0.2, 0.5, 0.3]).double(), torch.tensor([1.0, 2.0, 2.0]).double()
    gold = torch.tensor([0.3, -1.0, 4.0]).double()
    expected = (best_of_n_law(probs, scores.tolist(), 2) * gold).sum()
    drawn = torch.tensor(list(itertools.product(range(3), repeat=3)))
    found = best_of_n(scores[drawn], gold[drawn], 2)
    torch.testing.assert_close((probs[drawn].prod(1) * found).sum(), expected)


def test_best_of_one_and_of_all():
    proxy, gold = draw(4, 1500), draw(4, 1500, seed=1)
    torch.testing.assert_close(best_of_n(proxy, gold, 1), gold.mean(1))
    best = gold.gather(1, proxy.argmax(1, keepdim=True))[:, 0]
    torch.testing.assert_close(best_of_n(proxy, gold, 1500), best)
    assert best_of_n(proxy, gold.float(), 700).isfinite().all()  # C(1500, 700) exceeds float64


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((draw(2, 3), draw(2, 4), 1), "prompts, N"),
        ((draw(3), draw(3), 1), "prompts, N"),
        ((draw(2, 3), draw(2, 3), 4), "between 1 and the 3"),
        ((draw(2, 3), draw(2, 3), 0), "between 1 and the 3"),
        ((draw(2, 3) * math.nan, draw(2, 3), 1), "NaN"),
    ],
)
def test_best_of_n_refuses(arguments, word):
    with pytest.raises(ValueError, match=word):
        best_of_n(*arguments)


def test_no_best_of_none():
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n_kl(0)


FORMS = {
    "rl": lambda d, alpha, beta: d * (alpha - beta * math.log(d)) if d else 0.0,
    "bon": lambda d, alpha, beta: d * (alpha - beta * d),
}


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("weighted", [False, True])
def test_known_coefficients_are_found(method, weighted):
    d = torch.linspace(0, 5, 11)
    reward = torch.tensor([FORMS[method](x, 1.3, 0.45) for x in d.tolist()])
    weights = torch.linspace(1, 7, 11) if weighted else None
    if weights is not None:  # a point of no weight is not fitted
        d, reward = torch.cat([d, torch.ones(1)]), torch.cat([reward, torch.full((1,), 99.0)])
        weights = torch.cat([weights, torch.zeros(1)])
    found = fit(method, d, reward, weights)
    assert (found.alpha, found.beta) == pytest.approx((1.3, 0.45), abs=1e-5)
    assert found.r_squared == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("method", FORMS)
def test_fit_is_the_minimum_of_the_weighted_error(method):
    d, weights = draw(30).abs(), draw(30, seed=2).exp()
    reward = torch.tensor([FORMS[method](x, 0.8, 0.2) for x in d.tolist()]).double()
    reward += 0.3 * draw(30, seed=3)

    def error(alpha, beta):
        predicted = torch.tensor([FORMS[method](x, alpha, beta) for x in d.tolist()]).double()
        return (weights * (reward - predicted).square()).sum().item()

    found = fit(method, d, reward, weights)
    least = error(found.alpha, found.beta)
    for step in itertools.product((-1e-3, 0, 1e-3), repeat=2):
        assert error(found.alpha + step[0], found.beta + step[1]) >= least
    mean = (weights * reward).sum() / weights.sum()
    total = (weights * (reward - mean).square()).sum().item()
    assert found.r_squared == pytest.approx(1 - least / total)
    assert 0 < found.r_squared < 1


@pytest.mark.parametrize(
    ("method", "alpha", "beta"),
    [
        ("rl", 1.3, 0.45),
        ("rl", -0.4, 0.2),
        ("bon", 1.3, 0.45),
        ("bon", -0.3, 0.2),
        ("bon", 0, 0),
        ("rl", -1, 0),
        ("rl", 1, 0),
        ("rl", 1, -0.1),
        ("bon", 1, 0),
        ("bon", 1, -0.1),
    ],
)
def test_the_peak_is_the_largest_of_a_fine_grid(method, alpha, beta):
    found = Fit(method, alpha, beta, 1.0)
    grid = torch.linspace(0, 40, 400_001, dtype=torch.float64)
    rewards = found.reward(grid)
    best = int(rewards.argmax())
    where, height = found.peak
    if best == len(grid) - 1:  # it still grows at the end
        assert (where, height) == (math.inf, math.inf)
    else:
        assert (where, height) == pytest.approx((grid[best].item(), rewards[best].item()), abs=1e-4)


@pytest.mark.parametrize("method", FORMS)
def test_rewards_of_a_fit_are_those_of_its_form(method):
    d = [0.0, 0.3, 1.0, 7.0]
    expected = [FORMS[method](x, 0.7, 0.3) for x in d]
    assert Fit(method, 0.7, 0.3, 1.0).reward(torch.tensor(d)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("method", "d", "reward", "weights", "word"),
    [
        ("best", [1.0, 2.0], [1.0, 2.0], None, "rl or bon"),
        ("rl", [1.0, 2.0], [1.0], None, "one shape"),
        ("rl", [1.0, -2.0], [1.0, 2.0], None, "not negative"),
        ("rl", [1.0, math.nan], [1.0, 2.0], None, "finite"),
        ("rl", [1.0, 2.0], [1.0, 2.0], [1.0, -1.0], "not negative"),
        ("bon", [0.0, 1.0, 1.0], [0.0, 1.0, 2.0], None, "two different"),
        ("bon", [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [1.0, 1.0, 0.0], "two different"),
        ("bon", [1.0, 2.0], [0.0, 0.0], None, "all equal"),
    ],
)
def test_fit_refuses(method, d, reward, weights, word):
    weights = None if weights is None else torch.tensor(weights)
    with pytest.raises(ValueError, match=word):
        fit(method, torch.tensor(d), torch.tensor(reward), weights)
