"""Closed-form derivatives against autograd of the definitions, and the clip as a KL penalty."""

import math

import pytest
import torch

from shared.kl.weight.controllers import PPOPenalty
from trpo_ppo.config import presets
from trpo_ppo.policy import Agent, Categorical, Gaussian
from trpo_ppo.ppo import (
    clipped_gradient,
    entropy_gradient,
    kl_gradient,
    log_prob_gradient,
    plus,
    policy_gradient,
    policy_objective,
)
from trpo_ppo.report import explained_variance
from trpo_ppo.rollout import Batch

KINDS = ["categorical", "gaussian"]
N = 40


def pair(kind, seed=0, requires_grad=True):
    """Two policies on the same states, actions of the first, advantages."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    if kind == "categorical":
        old, new = Categorical(draw(N, 5)), Categorical(draw(N, 5).requires_grad_(requires_grad))
        actions = torch.multinomial(old.logits.softmax(-1), 1, generator=rng)
    else:
        old = Gaussian(draw(N, 3), draw(3))
        new = Gaussian(
            (old.mean + 0.3 * draw(N, 3)).requires_grad_(requires_grad),
            (old.logvar + 0.2 * draw(3)).requires_grad_(requires_grad),
        )
        actions = old.mean + torch.exp(0.5 * old.logvar) * draw(N, 3)
    return old, new, actions, draw(N)


def torch_distribution(policy):
    if isinstance(policy, Gaussian):
        normal = torch.distributions.Normal(policy.mean, torch.exp(0.5 * policy.logvar))
        return torch.distributions.Independent(normal, 1)
    return torch.distributions.Categorical(logits=policy.logits)


def assert_same(ours, value, new):
    theirs = torch.autograd.grad(value, list(new), allow_unused=True, materialize_grads=True)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_distributions_are_torchs(kind):
    old, new, actions, _ = pair(kind)
    p, q = torch_distribution(old), torch_distribution(new)
    flat = actions if kind == "gaussian" else actions[:, 0]
    assert torch.allclose(new.log_prob(actions), q.log_prob(flat), atol=1e-12)
    assert torch.allclose(new.entropy().expand(N), q.entropy(), atol=1e-12)
    kl = torch.distributions.kl_divergence
    assert torch.allclose(old.kl(new), kl(p, q), atol=1e-12)
    assert torch.allclose(new.kl(old), kl(q, p), atol=1e-12)
    assert old.kl(old).abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_autograds(kind):
    old, new, actions, weights = pair(kind)
    q = torch_distribution(new)
    flat = actions if kind == "gaussian" else actions[:, 0]
    assert_same(log_prob_gradient(new, actions, weights), (q.log_prob(flat) * weights).sum(), new)
    kl = torch.distributions.kl_divergence(torch_distribution(old), torch_distribution(new))
    assert_same(kl_gradient(old, new), kl.sum(), new)
    assert_same(entropy_gradient(new), torch_distribution(new).entropy().sum(), new)
    both = plus(kl_gradient(old, new), log_prob_gradient(new, actions, weights), -2.0)
    value = old.kl(new).sum() - 2 * (new.log_prob(actions) * weights).sum()
    assert_same(both, value, new)


def definition(algo, config, old, new, actions, advantages, beta):
    """Schulman et al. 2017, eq. 7 and 8, written with torch.distributions."""
    flat = actions if isinstance(old, Gaussian) else actions[:, 0]
    q, p = torch_distribution(new), torch_distribution(old)
    ratio = torch.exp(q.log_prob(flat) - p.log_prob(flat))
    if algo == "ppo-clip":
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        value = torch.minimum(ratio * advantages, clipped * advantages)
    else:
        value = ratio * advantages - beta * torch.distributions.kl_divergence(p, q)
    return (value + config.entropy * q.entropy()).sum()


def rows_of(old, actions, advantages):
    empty = torch.zeros(N)
    return Batch(empty, actions, old, old.log_prob(actions), advantages, empty, empty, N, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algo", ["ppo-clip", "ppo-kl", "ppo-kl-adaptive"])
@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_the_policys_gradient_is_autograds_of_the_papers_objective(kind, algo, entropy):
    import dataclasses

    old, new, actions, advantages = pair(kind, seed=3)
    config = dataclasses.replace(presets("CartPole-v1", algo)["default"], entropy=entropy)
    ours = policy_gradient(config, new, rows_of(old, actions, advantages), beta=0.7)
    paper = definition(algo, config, old, new, actions, advantages, 0.7)
    assert_same(ours, paper, new)
    value = policy_objective(config, new, rows_of(old, actions, advantages), beta=0.7)
    assert torch.allclose(value, paper, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_all_objectives_have_one_gradient_where_the_policies_are_equal(kind):
    old, _, actions, advantages = pair(kind)
    gradients = []
    for algo in ("ppo-clip", "ppo-kl", "ppo-kl-adaptive"):
        config = presets("CartPole-v1", algo)["default"]
        gradients.append(policy_gradient(config, old, rows_of(old, actions, advantages), beta=3.0))
    for other in gradients[1:]:
        assert all(
            torch.allclose(a, b, atol=1e-12) for a, b in zip(gradients[0], other, strict=True)
        )


def test_the_clips_gradient_is_that_of_a_penalty_per_sample():
    """Clipping = surrogate - b_i * KL's sample: b_i = A_i where clipped, 0 elsewhere.

    The sampled KL(old || new) of a transition is rho - 1 - log rho (k3's terms have that mean); the
    derivative of -log rho alone, k1, is -1. With the weight rho A on k1 the penalty takes exactly
    the surrogate's gradient away where the clip is active.
    """
    old, new, actions, advantages = pair("gaussian", seed=1)
    ratio = torch.exp(new.log_prob(actions) - old.log_prob(actions)).detach()
    active = clipped_gradient(ratio, advantages, 0.2) == 0
    assert 0 < active.sum() < N
    weights = torch.where(active, ratio * advantages, 0.0)
    k1 = old.log_prob(actions) - new.log_prob(actions)
    plain = torch.exp(new.log_prob(actions) - old.log_prob(actions)) * advantages
    penalised = torch.autograd.grad((plain + weights * k1).sum(), list(new))
    ours = log_prob_gradient(new, actions, clipped_gradient(ratio, advantages, 0.2))
    for a, b in zip(ours, penalised, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_at_and_beside_the_clips_edges():
    ratio = torch.tensor([1.3, 1.3, 0.7, 0.7, 1.1, 0.9], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
    gradient = clipped_gradient(ratio, advantages, 0.2)
    assert torch.allclose(gradient, torch.tensor([0, -1.3, 0.7, 0, 2.2, -1.8], dtype=torch.float64))
    # A range without end is no clip.
    assert torch.equal(clipped_gradient(ratio, advantages, 1e9), ratio * advantages)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (0.01 / 1.5, 1.0),
        (0.01 * 1.5, 1.0),
        (0.0, 0.5),
        (math.nextafter(0.01 / 1.5, 0), 0.5),
        (math.nextafter(0.01 * 1.5, 1), 2.0),
    ],
)
def test_the_adaptive_rule_at_its_boundaries(kl, factor):
    assert PPOPenalty(3.0, 0.01).update(kl) == 3.0 * factor


def test_explained_variance():
    target, values = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.5, 2.0, 3.0])

    def of(values):
        error = target - values
        return explained_variance(
            target.mean(), target.square().mean(), error.mean(), error.square().mean()
        ).item()

    assert of(values) == pytest.approx(1 - ((target - values).var() / target.var()).item())
    assert of(target + 7) == pytest.approx(1, abs=1e-5)  # off by a constant
    assert of(torch.zeros(3)) == pytest.approx(0, abs=1e-6)


def test_evaluation_leaves_the_moments_alone():
    agent = Agent(4, 2, "categorical", normalise=True)
    agent.moments.update(torch.randn(50, 4))
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    actor = agent.actor_arrays()
    actor.best(actor.normalised(torch.randn(3, 4).numpy()))
    assert all(torch.equal(before[n], v) for n, v in agent.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_policy(kind):
    torch.manual_seed(0)
    agent = Agent(2, 3, kind, log_std=-0.7)
    with torch.no_grad():
        agent.actor.flat.mul_(20)
    x = torch.tensor([[0.4, -1.0]]).repeat(20_000, 1)
    draw = torch.randn if kind == "gaussian" else torch.rand
    noise = draw(20_000, 3 if kind == "gaussian" else 1).numpy()
    actions = torch.from_numpy(agent.actor_arrays().sample(x.numpy(), noise))
    policy = agent.policy(x[:1])
    if isinstance(policy, Gaussian):
        assert torch.allclose(actions.mean(0), policy.mean[0], atol=0.02)
        assert torch.allclose(actions.std(0), torch.exp(0.5 * policy.logvar), rtol=0.02)
    else:
        share = torch.bincount(actions[:, 0], minlength=3) / 20_000
        assert torch.allclose(share, policy.logits[0].softmax(-1), atol=0.015)
