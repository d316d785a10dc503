"""The README's table "often read, what holds": a test for every row with a number.

Rows about fits to two modes and about disjoint supports are tested with ``make demo-kl``.
"""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.kl.categorical.bounds import bretagnolle_huber, pinsker
from shared.kl.categorical.discrete import (
    cross_entropy_from_probs,
    entropy_from_probs,
    jeffreys_from_probs,
    js_distance_from_probs,
    js_from_probs,
    kl_from_logits,
    kl_from_probs,
)
from shared.kl.categorical.divergences import (
    pearson_chi2_from_probs,
    squared_hellinger_from_probs,
    total_variation_from_probs,
)
from shared.kl.categorical.renyi import alpha_from_probs, renyi_from_probs
from shared.kl.gaussian.diagonal import kl_normal
from shared.kl.samples.estimators import log_ratio_estimator
from shared.kl.samples.variational import infonce_bound
from shared.kl.transport import wasserstein_1d


def probs(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def bernoulli(p: float) -> Tensor:
    return probs(1 - p, p)


FAIR, BIASED = probs(0.5, 0.5), probs(0.9, 0.1)


def test_the_root_of_jeffreys_is_no_metric_and_that_of_js_is_one():
    a, b, c = bernoulli(0.001), bernoulli(0.1), bernoulli(0.5)

    def root(p: Tensor, q: Tensor) -> float:
        return math.sqrt(jeffreys_from_probs(p, q))

    assert root(a, c) == pytest.approx(1.8565, abs=5e-5)
    assert root(a, b) + root(b, c) == pytest.approx(1.6203, abs=5e-5)
    through = js_distance_from_probs(a, b) + js_distance_from_probs(b, c)
    assert js_distance_from_probs(a, c) < through


def test_kl_has_no_triangle_inequality():
    a, b, c = bernoulli(0.5), bernoulli(0.25), bernoulli(0.1)
    assert kl_from_probs(a, c).item() == pytest.approx(0.5108, abs=5e-5)
    assert (kl_from_probs(a, b) + kl_from_probs(b, c)).item() == pytest.approx(0.2362, abs=5e-5)


def test_kl_may_be_the_same_both_ways():
    p, q = probs(0.9, 0.1), probs(0.1, 0.9)
    assert kl_from_probs(p, q).item() == pytest.approx(1.7578, abs=5e-5)
    assert kl_from_probs(q, p).item() == pytest.approx(kl_from_probs(p, q).item(), abs=1e-15)
    assert kl_from_probs(FAIR, BIASED) > 1.3 * kl_from_probs(BIASED, FAIR)


def test_a_minimiser_over_a_convex_set_need_not_be_unique():
    # All q with q_1 = 1/2: a convex set on which nothing depends on how the rest is shared.
    q = torch.tensor([[0.5, r, 0.5 - r] for r in (0, 0.1, 0.25, 0.5)], dtype=torch.float64)
    values = kl_from_probs(probs(1, 0, 0), q)
    assert values.tolist() == pytest.approx([math.log(2)] * 4, abs=1e-15)
    # Where p is positive throughout there is one, here q = (1/2, p_2 : p_3).
    p = probs(0.4, 0.4, 0.2)
    best = kl_from_probs(p, probs(0.5, 1 / 3, 1 / 6))
    assert bool((kl_from_probs(p, q[1:3]) > best + 1e-3).all())


def test_the_usual_generators_are_off_by_factors():
    t = FAIR / BIASED

    def divergence(f: Tensor) -> float:
        return (BIASED * f).sum().item()

    half_chi2 = divergence((t - 1).square() / 2)
    assert half_chi2 == pytest.approx(pearson_chi2_from_probs(FAIR, BIASED).item() / 2)
    assert half_chi2 == pytest.approx(8 / 9)
    twice_hellinger = divergence((1 - t.sqrt()).square())
    assert twice_hellinger == pytest.approx(2 * squared_hellinger_from_probs(FAIR, BIASED).item())
    assert twice_hellinger == pytest.approx(0.2111, abs=5e-5)
    twice_js = divergence(t * t.log() - (1 + t) * ((1 + t) / 2).log())
    assert twice_js == pytest.approx(2 * js_from_probs(FAIR, BIASED).item())
    assert twice_js == pytest.approx(0.2035, abs=5e-5)


def test_the_power_generator_is_no_renyi_divergence():
    t, a = FAIR / BIASED, 2.0
    powers = (BIASED * (t**a - 1) / (a * (a - 1))).sum().item()
    assert powers == pytest.approx(alpha_from_probs(FAIR, BIASED, a).item())
    assert powers == pytest.approx(8 / 9)
    renyi = renyi_from_probs(FAIR, BIASED, a).item()
    assert renyi == pytest.approx(1.0217, abs=5e-5)
    assert renyi == pytest.approx(math.log1p(a * (a - 1) * powers) / (a - 1))


def test_renyi_above_one_is_not_jointly_convex():
    p = torch.stack([bernoulli(0.5), bernoulli(0.01)])
    q = torch.stack([bernoulli(0.01), bernoulli(0.01)])
    assert renyi_from_probs(p.mean(0), q.mean(0), 2.0).item() == pytest.approx(1.955, abs=5e-4)
    assert renyi_from_probs(p, q, 2.0).mean().item() == pytest.approx(1.614, abs=5e-4)


def test_an_f_that_is_flat_around_one_is_zero_between_different_distributions():
    p, q = probs(0.5, 0.5), probs(0.6, 0.4)
    assert (q * ((p / q - 1).abs() - 0.5).clamp(min=0)).sum() == 0


def test_pinsker_is_about_nats():
    tv = total_variation_from_probs(FAIR, BIASED).item()
    assert tv == pytest.approx(0.4)
    bits = kl_from_probs(FAIR, BIASED, unit="bits")
    hartleys = kl_from_probs(FAIR, BIASED, unit="hartleys")
    assert math.sqrt(bits / 2) == pytest.approx(0.6070, abs=5e-5)  # true and needlessly weak
    assert math.sqrt(hartleys / 2) == pytest.approx(0.3331, abs=5e-5)  # false
    assert pinsker(bits, "bits").item() == pytest.approx(0.5054, abs=5e-5)
    assert pinsker(hartleys, "hartleys").item() == pytest.approx(0.5054, abs=5e-5)


def test_pinsker_says_nothing_above_two_nats():
    kl = probs(2.0, 10.0)
    assert pinsker(kl).tolist() == pytest.approx([1, math.sqrt(5)])
    assert bool((bretagnolle_huber(kl) < 1).all())


def test_a_fall_of_cross_entropy_is_a_fall_of_kl_from_labels_to_model():
    label = probs(0, 1, 0)
    before, after = (
        [(1 - right) / 2, right, (1 - right) / 2] for right in (math.exp(-1.2), math.exp(-0.4))
    )
    before, after = probs(*before), probs(*after)
    for divergence in (cross_entropy_from_probs, kl_from_probs):
        fall = divergence(label, before) - divergence(label, after)
        assert fall.item() == pytest.approx(0.8)
    assert kl_from_probs(before, label) == math.inf
    assert kl_from_probs(after, label) == math.inf


def test_a_code_for_one_distribution_on_another():
    # Ideal lengths of a code built for q, spent on symbols of p: H(p) + D(p || q).
    lengths = -BIASED.log2()
    spent = (FAIR * lengths).sum().item()
    assert spent == pytest.approx(1.7370, abs=5e-5)
    excess = kl_from_probs(FAIR, BIASED, unit="bits")
    assert excess.item() == pytest.approx(0.7370, abs=5e-5)
    assert spent == pytest.approx((entropy_from_probs(FAIR, unit="bits") + excess).item())
    # A prefix code of two symbols spends one bit on either; with blocks of 4 (Shannon's lengths)
    # the biased coin costs less than that, and never less than its entropy.
    blocks = torch.cartesian_prod(*[BIASED] * 4).prod(-1)
    assert (2.0 ** -(-blocks.log2()).ceil()).sum() <= 1  # Kraft: there is such a prefix code
    per_symbol = (blocks * (-blocks.log2()).ceil()).sum().item() / 4
    assert 0.4690 < per_symbol < 1


def test_the_gans_value_at_the_best_discriminator():
    best = FAIR / (FAIR + BIASED)
    value = (FAIR * best.log() + BIASED * (1 - best).log()).sum().item()
    assert value == pytest.approx(2 * js_from_probs(FAIR, BIASED).item() - math.log(4))
    assert value == pytest.approx(-1.1828, abs=5e-5)


def test_a_sampled_log_ratio_is_unbiased_for_samples_of_p_only_and_may_be_negative():
    k1 = log_ratio_estimator(BIASED.log(), FAIR.log(), "k1")
    assert (BIASED * k1).sum().item() == pytest.approx(0.3681, abs=5e-5)
    assert (BIASED * k1).sum().item() == pytest.approx(kl_from_probs(BIASED, FAIR).item())
    assert k1[0].item() == pytest.approx(0.5878, abs=5e-5)  # always the likeliest outcome
    assert k1[1].item() == pytest.approx(-1.6094, abs=5e-5)


def test_gradients_of_estimates_are_not_gradients_of_the_kl():
    logits = torch.tensor([0.3, -0.8, 1.1, 0.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([1.0, 0.2, -0.5, 0.4], dtype=torch.float64)

    def gradient(value: Tensor) -> list[float]:
        return torch.autograd.grad(value, logits)[0].tolist()

    def expected(kind: str) -> list[float]:
        logp, logq = logits.log_softmax(-1), reference.log_softmax(-1)
        return gradient((logp.detach().exp() * log_ratio_estimator(logp, logq, kind)).sum())

    reverse = gradient(kl_from_logits(logits, reference))
    forward = gradient(kl_from_logits(reference, logits))
    assert expected("k1") == pytest.approx([0] * 4, abs=1e-12)
    assert expected("k2") == pytest.approx(reverse, abs=1e-12)
    assert expected("k3") == pytest.approx(forward, abs=1e-12)
    assert np.abs(np.subtract(reverse, forward)).max() > 0.05


def test_donsker_varadhan_of_a_batch_is_above_the_truth_on_average():
    # The best critic, E_p exactly, and n draws of q enumerated by their number of second outcomes.
    critic = (FAIR / BIASED).log()

    def mean(n: int) -> float:
        k = torch.arange(n + 1, dtype=torch.float64)
        chance = torch.distributions.Binomial(n, BIASED[1]).log_prob(k).exp()
        log_mean = ((k * critic[1].exp() + (n - k) * critic[0].exp()) / n).log()
        return ((FAIR * critic).sum() - (chance * log_mean).sum()).item()

    means = [mean(n) for n in (1, 4, 64, 1000)]
    assert means == sorted(means, reverse=True)
    assert means[1] == pytest.approx(0.6928, abs=5e-5)
    assert means[2] == pytest.approx(0.5248, abs=5e-5)
    truth = kl_from_probs(FAIR, BIASED).item()
    assert truth == pytest.approx(0.5108, abs=5e-5)
    assert truth < means[-1] < truth + 2e-3


def test_infonce_is_at_most_log_n():
    scores = 100 * torch.eye(64, dtype=torch.float64)  # n pairs that are told apart without doubt
    assert infonce_bound(scores).item() == pytest.approx(math.log(64), abs=1e-12)


def test_gaussians_of_one_width_are_no_contrast_of_kl_and_transport():
    zero, mu = probs(0.0), probs(2.0)
    assert kl_normal(mu, zero, zero, zero).item() == pytest.approx(2)  # half the squared distance
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    assert wasserstein_1d(x, x + 2, order=2).square().item() == pytest.approx(4)


def test_a_bayes_factor_is_the_exponential_of_kl_differences_on_average_only():
    log_factor = (FAIR / BIASED).log()  # of one toss: fair against biased
    assert log_factor.tolist() == pytest.approx([-0.5878, 1.6094], abs=5e-5)
    assert (FAIR * log_factor).sum().item() == pytest.approx(0.5108, abs=5e-5)


def test_js_of_a_vanishing_weight_vanishes_and_its_rate_is_a_kl():
    value = js_from_probs(FAIR, BIASED, weight=1e-4).item()
    assert value < 1e-4
    assert value / 1e-4 == pytest.approx(kl_from_probs(FAIR, BIASED).item(), rel=1e-3)


def test_torchs_kl_div_has_the_arguments_the_other_way_round_and_another_mean():
    assert F.kl_div(BIASED.log(), FAIR, reduction="sum").item() == pytest.approx(
        kl_from_probs(FAIR, BIASED).item()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        mean = F.kl_div(BIASED.log()[None], FAIR[None], reduction="mean").item()
    assert mean == pytest.approx(kl_from_probs(FAIR, BIASED).item() / 2)


def test_the_formula_typed_as_it_stands_is_nan_at_a_zero():
    p, q = np.array([0.0, 1.0]), np.array([0.5, 0.5])
    with np.errstate(divide="ignore", invalid="ignore"):
        assert np.isnan((p * np.log(p / q)).sum())
    assert kl_from_probs(torch.from_numpy(p), torch.from_numpy(q)).item() == math.log(2)
