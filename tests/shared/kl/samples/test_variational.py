"""Pairs of correlated Gaussians, whose best critic and mutual information are known."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from shared.kl.samples.variational import (
    Critic,
    MINEState,
    dv_bound,
    infonce_bound,
    mine_loss,
    nwj_bound,
    smile_bound,
)

BOUNDS = {
    "dv": dv_bound,
    "nwj": nwj_bound,
    "infonce": infonce_bound,
    "smile": lambda scores: smile_bound(scores, 1.0),
}


def gaussians(information, n, d, rng):
    """x and y [n, d], each pair of coordinates correlated, with I(X; Y) = information in all."""
    rho = math.sqrt(-math.expm1(-2 * information / d))
    x = torch.randn(n, d, generator=rng, dtype=torch.float64)
    noise = torch.randn(n, d, generator=rng, dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * noise, rho


def best_scores(information, n, d, rng):
    """log p(y_j | x_i) / p(y_j), by torch.distributions."""
    x, y, rho = gaussians(information, n, d, rng)
    given_x = Normal(rho * x[:, None], math.sqrt(1 - rho**2))
    marginal = Normal(torch.zeros((), dtype=torch.float64), 1.0)
    return (given_x.log_prob(y) - marginal.log_prob(y)).sum(-1)


def over_batches(function, information, n, d, batches, seed=0):
    """Mean, standard error and all values of a bound with the best critic."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.stack([function(best_scores(information, n, d, rng)) for _ in range(batches)])
    return values.mean().item(), values.std().item() / math.sqrt(batches), values


def random_scores(n=4, seed=0, scale=2.0):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, n, generator=rng, dtype=torch.float64)


def test_definitions_in_many_digits():
    scores = random_scores(5)
    t = [[mpmath.mpf(v) for v in row] for row in scores.tolist()]
    n = len(t)
    joint = sum(t[i][i] for i in range(n)) / n
    apart = [t[i][j] for i in range(n) for j in range(n) if i != j]

    def mean_exp(values):
        return sum(mpmath.exp(v) for v in values) / len(values)

    truths = {
        "dv": joint - mpmath.log(mean_exp(apart)),
        "nwj": joint - mean_exp(apart) / mpmath.e,
        "infonce": sum(t[i][i] - mpmath.log(mean_exp(t[i])) for i in range(n)) / n,
        "smile": joint - mpmath.log(mean_exp([max(-1, min(1, v)) for v in apart])),
    }
    assert any(abs(v) > 1 for v in apart)
    for name, truth in truths.items():
        assert BOUNDS[name](scores).item() == pytest.approx(float(truth), rel=1e-12), name


@pytest.mark.parametrize(
    ("function", "offset"), [(dv_bound, 0), (nwj_bound, 1), (lambda t: smile_bound(t, 9.0), 0)]
)
def test_tight_with_the_best_critic(function, offset):
    mean, error, _ = over_batches(lambda t: function(t + offset), 0.5, 256, 1, 200)
    assert error < 0.01
    assert abs(mean - 0.5) < 4 * error


def test_infonce_is_tight_up_to_one_over_n():
    mean, error, _ = over_batches(infonce_bound, 0.5, 256, 1, 200)
    assert 0.5 - 4 * error - 2 / 256 < mean < 0.5 + 4 * error


@given(
    st.integers(2, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.floats(-200, 200, width=32), min_size=n, max_size=n), min_size=n, max_size=n
        )
    )
)
def test_infonce_is_never_above_log_n(rows):
    scores = torch.tensor(rows)
    assert infonce_bound(scores) <= torch.tensor(math.log(len(rows)))


def test_infonce_reaches_log_n_and_not_the_truth():
    assert infonce_bound(1000 * torch.eye(8)).item() == pytest.approx(math.log(8))
    _, _, values = over_batches(infonce_bound, 10.0, 64, 20, 50)
    assert (values <= math.log(64)).all()
    assert (values > math.log(64) - 0.3).all()


def test_a_batch_of_donsker_varadhan_is_no_lower_bound_and_nwj_is_noisy():
    """The rows of the module's table at 10 nats and n = 64."""
    mean, error, _ = over_batches(dv_bound, 10.0, 64, 20, 200)
    assert mean - 10 > 4 * error
    mean, error, values = over_batches(lambda t: nwj_bound(t + 1), 10.0, 64, 20, 200)
    assert values.std() > 1.5
    mean, error, values = over_batches(lambda t: smile_bound(t, 5.0), 10.0, 64, 20, 200)
    assert mean - 10 > 4 * error
    assert values.std() < 1


def test_independent_variables_give_no_information():
    for function in (dv_bound, infonce_bound):
        assert function(torch.zeros(6, 6)).item() == pytest.approx(0, abs=1e-6)
    assert nwj_bound(torch.ones(6, 6)).item() == pytest.approx(0, abs=1e-6)


def test_free_constants():
    scores = random_scores()
    torch.testing.assert_close(dv_bound(scores + 700), dv_bound(scores))
    row = torch.tensor([[5.0], [-3.0], [0.0], [900.0]], dtype=torch.float64)
    torch.testing.assert_close(infonce_bound(scores + row), infonce_bound(scores))
    assert nwj_bound(scores + 2) != nwj_bound(scores)


def test_nwj_is_below_donsker_varadhan():
    for seed in range(20):
        scores = random_scores(seed=seed)
        assert nwj_bound(scores) <= dv_bound(scores)


def test_smile_without_a_clip_is_donsker_varadhan():
    scores = random_scores()
    assert smile_bound(scores, math.inf) == dv_bound(scores)
    # Only pairs of the product are clipped: the joint's scores count in full.
    assert smile_bound(100 * torch.eye(3), 1.0).item() == pytest.approx(100)


@pytest.mark.parametrize("name", BOUNDS)
def test_gradcheck_and_half_precision(name):
    scores = random_scores().requires_grad_()
    assert torch.autograd.gradcheck(BOUNDS[name], scores)
    half = scores.detach().bfloat16()
    assert BOUNDS[name](half).dtype == torch.float32
    torch.testing.assert_close(BOUNDS[name](half), BOUNDS[name](half.float()))


def test_bad_arguments_are_named():
    scores = random_scores()
    for function, message in [
        (lambda: dv_bound(scores[:2]), r"scores must be \[n, n\]"),
        (lambda: infonce_bound(scores[:1, :1]), r"scores must be \[n, n\] with n at least 2"),
        (lambda: nwj_bound(scores.long()), "scores must be a floating-point"),
        (lambda: smile_bound(scores, 0.0), "clip must be positive"),
        (lambda: mine_loss(scores, MINEState.start(), 1.0), r"decay must be in \[0, 1\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            function()


# MINE


def test_mine_keeps_the_average_of_all_batches():
    decay, state = 0.9, MINEState.start()
    means = []
    for seed in range(4):
        scores = random_scores(seed=seed)
        apart = scores[~torch.eye(4, dtype=torch.bool)]
        means.append(apart.exp().mean().item())
        loss, state = mine_loss(scores, state, decay)
        assert loss.item() == pytest.approx(-dv_bound(scores).item(), rel=1e-12)
        weights = [decay ** (seed - i) for i in range(seed + 1)]
        average = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
        kept = state.log_sum.double().exp() / state.weight.double()
        assert kept.item() == pytest.approx(average, rel=1e-5)
    assert not state.log_sum.requires_grad


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_mine_divides_by_the_average_and_not_by_the_batch(decay):
    state = MINEState.start()
    _, state = mine_loss(random_scores(seed=1), state, decay)
    scores = random_scores(seed=2).requires_grad_()
    loss, after = mine_loss(scores, state, decay)
    (grad,) = torch.autograd.grad(loss, scores)
    average = (after.log_sum.double().exp() / after.weight.double()).item()
    product = scores.detach().exp() / (4 * 3) / average
    by_hand = product.fill_diagonal_(-1 / 4)
    torch.testing.assert_close(grad, by_hand, rtol=1e-5, atol=1e-7)
    (biased,) = torch.autograd.grad(-dv_bound(scores), scores)
    assert torch.allclose(grad, biased, rtol=1e-5) == (decay == 0)


def test_the_first_step_of_mine_is_that_of_donsker_varadhan():
    scores = random_scores().requires_grad_()
    loss, _ = mine_loss(scores, MINEState.start(), 0.99)
    (grad,) = torch.autograd.grad(loss, scores)
    (truth,) = torch.autograd.grad(-dv_bound(scores), scores)
    torch.testing.assert_close(grad, truth, rtol=1e-5, atol=1e-7)


def test_mine_does_not_overflow():
    scores = (500 + random_scores().float()).requires_grad_()
    loss, state = mine_loss(scores, MINEState.start(), 0.99)
    loss.backward()
    assert loss.isfinite()
    assert scores.grad.isfinite().all()
    assert state.log_sum.isfinite()


def test_the_critic_scores_every_pair():
    torch.manual_seed(0)
    critic = Critic(2, 3, 8)
    x, y = torch.randn(5, 2), torch.randn(4, 3)
    scores = critic(x, y)
    assert scores.shape == (5, 4)
    torch.testing.assert_close(scores[2:3, 1:2], critic(x[2:3], y[1:2]))
    assert scores.std() > 0


def test_mine_learns_the_information_of_gaussians():
    information = 0.8
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    critic = Critic(1, 1, 32)
    optimiser = torch.optim.Adam(critic.parameters(), lr=5e-3)
    state = MINEState.start()
    for _ in range(250):
        x, y, _ = gaussians(information, 64, 1, rng)
        loss, state = mine_loss(critic(x.float(), y.float()), state, 0.95)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, y, _ = gaussians(information, 600, 1, rng)
    with torch.no_grad():
        value = dv_bound(critic(x.float(), y.float())).item()
    assert value == pytest.approx(information, abs=0.1)
