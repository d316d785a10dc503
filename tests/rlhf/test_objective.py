"""The loss's parts on rows of different lengths, against sums written out from the definitions."""

import math

import pytest
import torch

from rlhf.objective import advantages, last_token, policy_terms, token_rewards, value_terms
from shared.kl import kl_from_logits

LENGTHS = [1, 3, 5, 4]
TIME = 5
MASK = torch.arange(TIME) < torch.tensor(LENGTHS)[:, None]
BETA = 0.3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_numbers():
    """Scores [n], log-probabilities under both and exact KLs [n, time]."""
    p, q = draw(len(LENGTHS), TIME, 6), draw(len(LENGTHS), TIME, 6, seed=1)
    log_prob, reference = (x.log_softmax(-1)[..., 2] for x in (p, q))
    return draw(len(LENGTHS), seed=2), log_prob, reference, kl_from_logits(p, q)


def spoilt(x):
    return torch.where(MASK, x, math.nan)


def test_the_last_token_is_one_in_every_row():
    result = last_token(MASK)
    assert result.nonzero().tolist() == [[i, n - 1] for i, n in enumerate(LENGTHS)]
    assert not last_token(torch.zeros(2, 3, dtype=torch.bool)).any()


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "rb"])
def test_rewards_are_the_score_less_what_each_token_pays(kind):
    scores, log_prob, reference, kl = random_numbers()
    result = token_rewards(scores, log_prob, reference, kl, MASK, BETA, kind)
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            r = (log_prob[i, t] - reference[i, t]).item()
            paid = {
                "k1": r,
                "k2": r * r / 2,
                "k3": math.exp(-r) - 1 + r,
                "rb": kl[i, t + 1].item() if t + 1 < length else 0.0,
            }[kind]
            score = scores[i].item() if t == length - 1 else 0.0
            assert result[i, t].item() == pytest.approx(score - BETA * paid, abs=1e-12)
        assert result[i, length:].abs().sum() == 0


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (1.0, 0.0)])
def test_advantages_are_weighted_sums_of_temporal_differences(gamma, lam):
    """Schulman et al. 2016, eq. 16: A_t = sum_k (gamma lam)^k delta_{t+k}, to the row's end."""
    rewards, values = draw(len(LENGTHS), TIME), draw(len(LENGTHS), TIME, seed=1)
    result, targets = advantages(rewards, values, MASK, gamma, lam)
    for i, length in enumerate(LENGTHS):
        r, v = rewards[i].tolist(), [*values[i, :length].tolist(), 0.0]
        for t in range(length):
            expected = sum(
                (gamma * lam) ** (s - t) * (r[s] + gamma * v[s + 1] - v[s])
                for s in range(t, length)
            )
            assert result[i, t].item() == pytest.approx(expected, abs=1e-12)
            assert targets[i, t].item() == pytest.approx(expected + v[t], abs=1e-12)
        assert result[i, length:].abs().sum() == targets[i, length:].abs().sum() == 0


def test_with_nothing_discounted_the_target_is_what_is_still_to_come():
    rewards, values = draw(len(LENGTHS), TIME), draw(len(LENGTHS), TIME, seed=1)
    _, targets = advantages(rewards, values, MASK, 1.0, 1.0)
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            assert targets[i, t].item() == pytest.approx(rewards[i, t:length].sum().item())


@pytest.mark.parametrize("kind", ["k1", "rb"])
def test_what_stands_in_the_padding_changes_nothing(kind):
    scores, log_prob, reference, kl = random_numbers()
    values = draw(len(LENGTHS), TIME, seed=3)
    clean = token_rewards(scores, log_prob, reference, kl, MASK, BETA, kind)
    dirty = token_rewards(scores, *map(spoilt, (log_prob, reference, kl)), MASK, BETA, kind)
    assert torch.equal(clean, dirty)
    for a, b in zip(
        advantages(clean, values, MASK, 0.9, 0.8),
        advantages(spoilt(clean), spoilt(values), MASK, 0.9, 0.8),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("ratio", [0.5, 0.8, 0.81, 1.0, 1.19, 1.2, 1.7])
def test_the_clip_holds_where_more_would_be_gained(ratio, advantage):
    """Schulman et al. 2017, eq. 7 and figure 1: flat above 1.2 if it pays, below 0.8 if not."""
    log_prob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    loss, bound = policy_terms(
        log_prob, torch.zeros(1), torch.tensor([advantage], dtype=torch.float64), 0.2
    )
    (slope,) = torch.autograd.grad(loss.sum(), log_prob)
    held = ratio > 1.2 + 1e-9 if advantage > 0 else ratio < 0.8 - 1e-9
    expected = (1.2 if advantage > 0 else 0.8) if held else ratio
    assert loss.item() == pytest.approx(-expected * advantage)
    if abs(ratio - 0.8) > 1e-9 and abs(ratio - 1.2) > 1e-9:  # at the corner there is no slope
        assert bound.item() is held
        assert slope.item() == pytest.approx(0.0 if held else -ratio * advantage)


@pytest.mark.parametrize(
    ("value", "target", "expected"),
    [
        (0.1, 1.0, 0.9**2 / 2),  # within the range: the plain square
        (0.9, 1.0, 0.8**2 / 2),  # moved too far towards the target: as if it were at 0.2
        (-0.9, 1.0, 1.9**2 / 2),  # moved away: the worse of both
        (0.2, 0.2, 0.0),
    ],
)
def test_values_gain_nothing_by_moving_further_than_the_clip(value, target, expected):
    """The value was 0 at the rollout, the range is 0.2."""
    moving = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    loss = value_terms(moving, torch.zeros(1), torch.tensor([target], dtype=torch.float64), 0.2)
    assert loss.item() == pytest.approx(expected)
    (slope,) = torch.autograd.grad(loss.sum(), moving)
    assert slope.item() == pytest.approx(0.0 if value == 0.9 else value - target)
