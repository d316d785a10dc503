"""The trust region: Fisher products against explicit matrices, steps against closed forms."""

import math

import pytest
import torch
from torch.autograd.functional import hessian
from torch.func import functional_call

from trpo_ppo.policy import Agent, Categorical, Gaussian, flat
from trpo_ppo.ppo import surrogate
from trpo_ppo.trpo import conjugate_gradient, fisher_vector_product, natural_step, trust_region_step

KINDS = ["categorical", "gaussian"]


def mean(x):
    return x.mean(0)


def average_of(n):
    return lambda x: x.sum(0) / n


def agent_of(kind, seed, dtype=torch.float64, width=5, observations=4, actions=3):
    torch.manual_seed(seed)
    agent = Agent(observations, actions, kind, width=width, depth=2).to(dtype)
    with (
        torch.no_grad()
    ):  # larger than at the start of training, where the policy is almost uniform
        agent.actor.flat.copy_(torch.randn_like(agent.actor.flat))
        agent.log_std.copy_(0.5 * torch.randn_like(agent.log_std))
    return agent


def sample(agent, x):
    policy = agent.policy(x).detach()
    if isinstance(policy, Gaussian):
        return policy.mean + torch.exp(0.5 * policy.logvar) * torch.randn_like(policy.mean)
    return torch.multinomial(policy.logits.softmax(-1), 1)


def product_of(agent, x, damping=0.0):
    old = agent.policy(x).detach()
    rows = old.kl(agent.policy(x))
    return fisher_vector_product(rows, agent.policy_parameters(), average_of(len(x)), damping)


def torch_kl(agent, x, theta, old):
    """KL(old || new) through torch.distributions and plain torch: nothing of the application's."""
    at, layers = 0, []
    for i, o in zip(agent.actor.sizes, agent.actor.sizes[1:], strict=False):
        layers.append((theta[at : at + i * o].view(i, o), theta[at + i * o : at + i * o + o]))
        at += i * o + o
    h = x
    for weights, biases in layers[:-1]:
        h = torch.tanh(h @ weights + biases)
    out = h @ layers[-1][0] + layers[-1][1]
    if isinstance(old, Gaussian):
        p = torch.distributions.Normal(old.mean, torch.exp(0.5 * old.logvar), validate_args=False)
        q = torch.distributions.Normal(out, torch.exp(theta[at:]), validate_args=False)
        return torch.distributions.kl_divergence(p, q).sum(-1).mean()
    log_p, log_q = old.logits.log_softmax(-1), out.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_fisher_vector_product_is_the_explicit_hessian(kind, seed):
    agent = agent_of(kind, seed)
    x = torch.randn(7, 4, dtype=torch.float64)
    old = agent.policy(x).detach()
    theta = flat(agent.policy_parameters()).detach()
    matrix = hessian(lambda t: torch_kl(agent, x, t, old), theta)
    product = product_of(agent, x)
    for _ in range(3):
        v = torch.randn_like(theta)
        expected = matrix @ v
        assert (product(v) - expected).norm() <= 1e-10 * expected.norm()
        assert (product_of(agent, x, 0.3)(v) - expected - 0.3 * v).norm() <= 1e-10 * v.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_fisher_matrix_is_the_outer_product_of_scores(kind):
    """E_a[grad log pi grad log pi'] over all actions (categorical), or by its closed form."""
    agent = agent_of(kind, 5)
    x = torch.randn(6, 4, dtype=torch.float64)
    product = product_of(agent, x)
    n = len(flat(agent.policy_parameters()))
    matrix = torch.stack([product(e) for e in torch.eye(n, dtype=torch.float64)])
    assert torch.allclose(matrix, matrix.T, atol=1e-13)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12
    expected = torch.zeros_like(matrix)
    policy = agent.policy(x)
    for row in range(len(x)):
        one = type(policy)(*(p[row : row + 1] if p.dim() == 2 else p for p in policy))
        if isinstance(one, Categorical):
            for action in range(3):
                log_prob = one.log_prob(torch.tensor([[action]])).sum()
                score = flat(
                    torch.autograd.grad(log_prob, agent.policy_parameters(), retain_graph=True)
                )
                expected += log_prob.exp().detach() * torch.outer(score, score) / len(x)
        else:
            for d in range(3):  # Fisher matrix of a normal: 1/var for the mean, 2 for log sd
                jacobian = flat(
                    torch.autograd.grad(
                        one.mean[0, d],
                        agent.policy_parameters(),
                        retain_graph=True,
                        allow_unused=True,
                        materialize_grads=True,
                    )
                )
                expected += torch.outer(jacobian, jacobian) / one.logvar[d].exp().detach() / len(x)
                at = len(agent.actor.flat) + d
                expected[at, at] += 2 / len(x)
    assert torch.allclose(matrix, expected, atol=1e-12)


def test_conjugate_gradient_solves_and_is_exact_in_n_steps():
    torch.manual_seed(0)
    root = torch.randn(12, 12, dtype=torch.float64)
    a, b = root @ root.T + torch.eye(12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    x = conjugate_gradient(lambda v: a @ v, b, 12, 0.0)
    assert torch.allclose(x, torch.linalg.solve(a, b), atol=1e-8)
    early = conjugate_gradient(lambda v: a @ v, b, 100, 1e-3)
    assert (a @ early - b).norm() <= 1.01e-3 * b.norm()


def test_conjugate_gradient_stops_at_bad_curvature():
    b = torch.tensor([1.0, 2.0])
    assert torch.equal(conjugate_gradient(lambda v: -v, b, 10, 0.0), torch.zeros(2))
    assert torch.equal(conjugate_gradient(lambda v: v * math.nan, b, 10, 0.0), torch.zeros(2))


@pytest.mark.parametrize("curvature", [0.0, -1.0, math.nan, math.inf])
def test_natural_step_refuses_bad_curvature(curvature):
    assert natural_step(lambda v: v * curvature, torch.ones(3), 0.01) is None


def softmax_bandit(theta, advantages, delta, **options):
    """One state; the expectation over actions is exact: a row for each, weighted by its p."""
    p = theta.detach().softmax(-1)
    actions = torch.arange(len(p))[:, None]
    old = Categorical(theta.detach().expand(len(p), -1).clone())

    def policy():
        return Categorical(theta.expand(len(p), -1))

    return trust_region_step(
        lambda: surrogate(policy().log_prob(actions), old.log_prob(actions), advantages) * p,
        lambda: old.kl(policy()) * p,
        [theta],
        lambda x: x.sum(0),
        delta,
        0.0,
        10,
        10,
        **options,
    )


def test_the_step_of_a_softmax_bandit_is_the_closed_form():
    """Natural gradient of a softmax is the advantage: F^-1 g = A - const, g'F^-1 g = Var_p A."""
    torch.manual_seed(1)
    start = torch.randn(4, dtype=torch.float64)
    theta = torch.nn.Parameter(start.clone())
    advantages = torch.randn(4, dtype=torch.float64)
    p, delta = start.softmax(-1), 1e-7  # so small that the first step holds
    centred = advantages - (p * advantages).sum()
    step = softmax_bandit(theta, advantages, delta)
    expected = centred * math.sqrt(2 * delta / (p * centred**2).sum())
    moved = theta.detach() - start
    assert step.accepted
    assert torch.allclose(moved - moved.mean(), expected - expected.mean(), rtol=1e-6, atol=0)


def test_the_step_of_a_gaussian_mean_is_the_closed_form():
    """F = 1 / sigma^2, so the step is sqrt(2 delta) sigma g / |g| and its KL is delta exactly."""
    mu = torch.nn.Parameter(torch.tensor([0.3, -1.0], dtype=torch.float64))
    before, logvar = mu.detach().clone(), torch.tensor([0.5, 0.5], dtype=torch.float64)
    actions = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    old, advantages = Gaussian(before.expand(50, -1), logvar), actions[:, 0] - 0.4 * actions[:, 1]
    step = trust_region_step(
        lambda: surrogate(
            Gaussian(mu.expand(50, -1), logvar).log_prob(actions), old.log_prob(actions), advantages
        ),
        lambda: old.kl(Gaussian(mu.expand(50, -1), logvar)),
        [mu],
        mean_rows,
        0.01,
        0.0,
        10,
        30,
    )
    sigma = math.exp(0.25)
    g = ((actions - before) * advantages[:, None]).mean(0) / sigma**2
    full = math.sqrt(0.02) * sigma * g / g.norm()
    assert step.accepted
    assert torch.allclose(mu.detach() - before, full * 0.8**step.backtracks, rtol=1e-9)
    assert step.kl == pytest.approx(0.01 * 0.8 ** (2 * step.backtracks), rel=1e-9)
    assert step.expected == pytest.approx((g @ full).item(), rel=1e-9)


def mean_rows(x):
    return x.sum(0) / 50


def run_step(agent, x, actions, advantages, delta, **options):
    old = agent.policy(x).detach()
    log_prob = old.log_prob(actions)
    settings = {"damping": 0.1, "iterations": 10, "backtracks": 10} | options
    step = trust_region_step(
        lambda: surrogate(agent.policy(x).log_prob(actions), log_prob, advantages),
        lambda: old.kl(agent.policy(x)),
        agent.policy_parameters(),
        average_of(len(x)),
        delta,
        **settings,
    )
    return step, old, log_prob


def test_the_trust_region_holds_on_200_random_networks_and_batches():
    accepted = 0
    for seed in range(200):
        kind = KINDS[seed % 2]
        agent = agent_of(kind, seed, torch.float32, width=(4, 16, 64)[seed % 3])
        x = torch.randn(64, 4) * 10.0 ** (seed % 4 - 1)
        actions = sample(agent, x)
        advantages = torch.randn(64) * 10.0 ** (seed % 9 * 4 - 8)  # up to 1e24
        delta = (1e-4, 1e-2, 1.0)[seed % 3]
        before = flat(agent.policy_parameters()).detach().clone()
        step, old, log_prob = run_step(agent, x, actions, advantages, delta)
        after = flat(agent.policy_parameters()).detach()
        with torch.no_grad():
            kl = old.kl(agent.policy(x))
            gain = (torch.exp(agent.policy(x).log_prob(actions) - log_prob) - 1) * advantages
        if step.accepted:
            accepted += 1
            assert (kl.sum() / 64).item() <= delta
            assert step.kl == (kl.sum() / 64).item()
            assert gain.double().mean() > 0 or abs(gain.double().mean()) < 1e-4 * gain.abs().max()
        else:
            assert torch.equal(before, after), seed
            assert step.failure
    assert accepted > 150


def test_a_failed_search_leaves_every_bit():
    for seed in range(20):
        agent = agent_of(KINDS[seed % 2], seed, torch.float32)
        x = torch.randn(32, 4)
        before = [p.detach().clone() for p in agent.policy_parameters()]
        old, actions = agent.policy(x).detach(), sample(agent, x)

        def kl(agent=agent, old=old, x=x):
            """Too large wherever the search looks."""
            return old.kl(agent.policy(x)) + (0.0 if torch.is_grad_enabled() else 1.0)

        step = trust_region_step(
            lambda a=agent, x=x, actions=actions: a.policy(x).log_prob(actions),
            kl,
            agent.policy_parameters(),
            average_of(32),
            0.01,
            0.1,
            10,
            5,
        )
        assert (step.accepted, step.failure, step.backtracks) == (False, "line_search", 5)
        after = agent.policy_parameters()
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("advantage", "failure"),
    [(0.0, "no_gradient"), (math.nan, "not_finite"), (math.inf, "not_finite")],
)
def test_no_step_without_a_gradient(advantage, failure):
    agent = agent_of("gaussian", 0)
    x = torch.randn(16, 4, dtype=torch.float64)
    before = flat(agent.policy_parameters()).detach().clone()
    step, *_ = run_step(agent, x, sample(agent, x), torch.full((16,), advantage), 0.01)
    assert step.failure == failure
    assert torch.equal(before, flat(agent.policy_parameters()))


@pytest.mark.parametrize("sign", [-1.0, math.nan])
def test_no_step_along_bad_curvature(sign):
    agent = agent_of("categorical", 0)
    x = torch.randn(16, 4, dtype=torch.float64)
    old, actions = agent.policy(x).detach(), sample(agent, x)
    before = flat(agent.policy_parameters()).detach().clone()
    step = trust_region_step(
        lambda: agent.policy(x).log_prob(actions),
        lambda: sign * old.kl(agent.policy(x)),
        agent.policy_parameters(),
        average_of(16),
        0.01,
        0.0,
        10,
        10,
    )
    assert (step.accepted, step.failure) == (False, "curvature")
    assert torch.equal(before, flat(agent.policy_parameters()))


def test_the_step_does_not_depend_on_the_advantages_scale():
    results = []
    for scale in (1.0, 1e6):
        agent = agent_of("gaussian", 3)
        x = torch.randn(32, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(2)
        run_step(agent, x, sample(agent, x), scale * torch.randn(32, dtype=torch.float64), 0.01)
        results.append(flat(agent.policy_parameters()).detach())
    assert torch.allclose(*results, rtol=1e-9)


def test_functional_call_sees_the_network():
    """The flat parameter is what the network computes with: another one gives another output."""
    agent = agent_of("gaussian", 0)
    x = torch.randn(3, 4, dtype=torch.float64)
    other = functional_call(agent.actor, {"flat": torch.zeros_like(agent.actor.flat)}, (x,))
    assert torch.equal(other, torch.zeros(3, 3, dtype=torch.float64))
