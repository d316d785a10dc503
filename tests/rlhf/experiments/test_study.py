"""The study's machinery from definitions, and what it must find."""

import itertools
import json
import math
from statistics import median

import pytest
import torch

from rlhf.experiments import study
from rlhf.experiments.study import BETA, at_distance, bandit, moments, optimise
from rlhf.experiments.study_schemes import (
    SCHEMES,
    exact_gradient,
    exact_kl,
    expected_gradient,
    paths,
    sequences,
    tables,
)

EXACT = {("k1", "reward"), ("exact", "loss and reward"), ("k2, later k1", "loss and reward")}
OWN_TOKEN = {("k2", "loss"), ("k3 x ratio", "loss"), ("exact", "loss")}


def named(estimate, place):
    (found,) = [s for s in SCHEMES if (s.estimate, s.place) == (estimate, place)]
    return found


def softmax(row):
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def slow_kl(p, q, length, row=0):
    """Of sequences by the chain rule: the KL at a prefix, and those behind it, weighted."""
    if not length:
        return 0.0
    ours, theirs = softmax(p[row].tolist()), softmax(q[row].tolist())
    return sum(
        a * (math.log(a / b) + slow_kl(p, q, length - 1, row * len(ours) + token + 1))
        for token, (a, b) in enumerate(zip(ours, theirs, strict=True))
    )


@pytest.mark.parametrize(("vocabulary", "length"), [(3, 1), (3, 3), (2, 4)])
def test_every_sequence_and_every_prefix_once(vocabulary, length):
    tokens, rows = sequences(vocabulary, length)
    assert tokens.tolist() == [list(s) for s in itertools.product(range(vocabulary), repeat=length)]
    prefixes = {}
    for sequence, row in zip(tokens.tolist(), rows.tolist(), strict=True):
        for t in range(length):
            assert prefixes.setdefault(row[t], tuple(sequence[:t])) == tuple(sequence[:t])
    p, _ = tables(0, vocabulary, length)
    assert sorted(prefixes) == list(range(len(p)))
    assert len(set(prefixes.values())) == len(p)


def test_probabilities_and_the_kl_by_the_chain_rule():
    p, q = tables(3, 3, 3)
    at = paths(p, q, 3)
    assert at.probs.sum().item() == pytest.approx(1)
    assert exact_kl(at).item() == pytest.approx(slow_kl(p, q, 3), rel=1e-12)


def test_the_exact_gradient_by_differences():
    p, q = tables(1, 3, 2)
    gradient = exact_gradient(p, q, 2)
    for row, column in itertools.product(range(len(p)), range(3)):
        step = torch.zeros_like(p)
        step[row, column] = 1e-5
        slope = (slow_kl(p + step, q, 2) - slow_kl(p - step, q, 2)) / 2e-5
        assert gradient[row, column].item() == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.estimate}: {s.place}")
def test_which_gradients_are_exact(scheme):
    """For one decision also those that leave out what a token does to the later ones."""
    key = (scheme.estimate, scheme.place)
    for length, right in ((1, EXACT | OWN_TOKEN), (2, EXACT), (3, EXACT)):
        p, q = tables(5, 3, length)
        wanted = exact_gradient(p, q, length)
        error = (expected_gradient(scheme, p, q, length) - wanted).norm() / wanted.norm()
        assert (error < 1e-13) == (key in right), (length, error)
        assert key in right or error > 1e-3


def test_k3_trains_the_other_direction_or_the_difference():
    """One decision: as a loss grad KL(ref || policy); in the reward what is left of both."""
    p, q = tables(2, 6, 1)
    policy = p.clone().requires_grad_()
    ours, theirs = policy.log_softmax(-1), q.log_softmax(-1)
    (forward,) = torch.autograd.grad((theirs.exp() * (theirs - ours)).sum(), policy)
    loss, reward = (expected_gradient(named("k3", place), p, q, 1) for place in ("loss", "reward"))
    torch.testing.assert_close(loss, forward, rtol=0, atol=1e-14)
    torch.testing.assert_close(reward, exact_gradient(p, q, 1) - forward, rtol=0, atol=1e-14)


@pytest.mark.parametrize("key", [("k1", "loss"), ("exact", "reward")])
def test_some_have_no_gradient_at_all_on_a_bandit(key):
    p, q = tables(4, 6, 1)
    assert expected_gradient(named(*key), p, q, 1).norm() < 1e-14


def test_no_policy_beats_the_optimum_of_the_bandit():
    problem = bandit()
    assert problem.objective(problem.optimum) == pytest.approx(problem.best)
    noise = torch.Generator().manual_seed(0)
    for size in (0.01, 0.3, 3.0):
        shift = size * torch.randn(problem.optimum.shape, generator=noise, dtype=torch.float64)
        assert problem.objective(problem.optimum + shift) < problem.best
    greedy = torch.full_like(problem.optimum, -100.0)
    greedy[0, problem.rewards.argmax()] = 0
    arm = problem.rewards.argmax()
    paid = -problem.reference.log_softmax(-1)[0, arm]
    assert problem.objective(greedy) == pytest.approx((problem.rewards[arm] - BETA * paid).item())


def test_ascent_reaches_the_optimum_with_the_right_gradient_only(monkeypatch):
    monkeypatch.setattr(study, "STEPS", 300)
    problem = bandit()
    reached = {(s.estimate, s.place): optimise(s, problem) for s in SCHEMES}
    for key, found in reached.items():
        assert found["lost"] == pytest.approx(BETA * found["kl_optimum"], abs=1e-9)
        if key in EXACT | OWN_TOKEN:
            assert found["kl_optimum"] < 3e-3
        else:
            assert found["kl_optimum"] > 0.1
    right, wrong = reached["k1", "reward"], reached["k3", "reward"]
    assert wrong["kl"] > 2 * right["kl"]


@pytest.mark.parametrize("nats", [0.01, 1.0])
def test_values_of_the_estimators(nats):
    """k1, k3 and exact are unbiased; k2 is not; exact varies less than k1."""
    found = {kind: [] for kind in study.KINDS}
    for seed in range(4):
        at = at_distance(nats, seed)
        assert exact_kl(at).item() == pytest.approx(nats, rel=1e-9)
        for kind, collected in found.items():
            collected.append(moments(kind, at))
    for kind, values in found.items():
        bias = [value[0] for value in values]
        assert max(bias) < 1e-9 if kind != "k2" else min(bias) > 1e-5
        assert all(value[1] > 0 for value in values)
        assert all((value[2] > 0) == (kind == "k1") for value in values)
    for k1, exact in zip(found["k1"], found["exact"], strict=True):
        assert exact[1] < k1[1]


def test_the_program_writes_its_tables_and_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["study", "--results", str(tmp_path)])
    monkeypatch.setattr(study, "INSTANCES", 2)
    monkeypatch.setattr(study, "STEPS", 40)
    study.main()
    schemes = json.loads((tmp_path / "estimators.json").read_text())["rows"]
    assert len(schemes) == len(SCHEMES) + 1
    assert schemes[0]["error"] < 1e-12
    values = json.loads((tmp_path / "estimator_values.json").read_text())["rows"]
    k1 = [moments("k1", at_distance(1.0, seed))[1] for seed in range(2)]
    (row,) = [row for row in values if (row["nats"], row["estimate"]) == (1.0, "k1")]
    assert row["deviation"] == pytest.approx(median(k1))
    assert (tmp_path / "estimators.png").stat().st_size > 10_000
