"""Estimators of the KL as a penalty, compared by enumeration.

``python -m rlhf.experiments.study [--results rlhf/results]``

k1, k2, k3 and the exact KL of every state, subtracted from the reward or differentiated as a loss,
on problems so small that every sequence is visited. The value of an estimator and the gradient it
gives are two questions (Tang and Munos 2025, arXiv 2506.09477), and where it is put decides the
second (Liu et al. 2025, arXiv 2510.01555; Shah et al. 2025, arXiv 2512.21852).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from torch import Tensor

from rlhf.experiments import pictures
from rlhf.experiments.study_schemes import (
    SCHEMES,
    Paths,
    Scheme,
    exact_gradient,
    exact_kl,
    expected_gradient,
    paths,
    tables,
)
from shared import cli
from shared.experiments.tables import describe_columns, markdown, write_result
from shared.kl import kl_from_logits, log_ratio_estimator, rao_blackwell_kl
from shared.run.environment import describe

VOCABULARY, LENGTH = 4, 2  # of the gradient study: 16 sequences
INSTANCES = 20  # random policies and references of the gradient study
ARMS, BETA, STEPS, STEP_SIZE = 12, 0.5, 1000, 1.0  # of the bandit
KINDS = ("k1", "k2", "k3", "exact")
LONG = 4  # tokens of the 256 sequences on which values are compared
NATS = (0.01, 0.1, 1.0, 3.0)  # KLs at which they are
SETTINGS = {
    "gradient": {"vocabulary": VOCABULARY, "length": LENGTH, "instances": INSTANCES},
    "bandit": {"arms": ARMS, "beta": BETA, "steps": STEPS, "step_size": STEP_SIZE},
    "values": {"vocabulary": VOCABULARY, "length": LONG, "instances": INSTANCES},
}


@dataclass(frozen=True)
class Options:
    """Estimators of KL(policy || reference) in the reward and as a loss, by enumeration."""

    results: str = "rlhf/results"
    """Folder for the tables as JSON and the picture."""


def gradient_errors(scheme: Scheme) -> dict[str, float]:
    """||g - g*|| / ||g*|| and the cosine of both, over the instances."""
    errors, cosines = [], []
    for seed in range(INSTANCES):
        p, q = tables(seed, VOCABULARY, LENGTH)
        expected, exact = expected_gradient(scheme, p, q, LENGTH), exact_gradient(p, q, LENGTH)
        errors.append(((expected - exact).norm() / exact.norm()).item())
        product = expected.norm() * exact.norm()
        # k1 as a loss: rounding of zero has no direction.
        aligned = expected.norm() > 1e-12 * exact.norm()
        cosines.append(((expected * exact).sum() / product).item() if aligned else 0.0)
    return {
        "error": median(errors),
        "least": min(errors),
        "most": max(errors),
        "cosine": median(cosines),
    }


class Bandit(NamedTuple):
    """One decision: reference logits [1, arms] and rewards [arms]."""

    reference: Tensor
    rewards: Tensor

    @property
    def optimum(self) -> Tensor:
        """Logits [1, arms] of the policy with the largest E r - beta KL(policy || reference)."""
        return self.reference.log_softmax(-1) + self.rewards / BETA

    @property
    def best(self) -> float:
        """That largest value: beta log Z."""
        return BETA * self.optimum.logsumexp(-1).item()

    def objective(self, logits: Tensor) -> float:
        kl = kl_from_logits(logits, self.reference)
        return (logits.softmax(-1) @ self.rewards - BETA * kl).item()


def bandit(seed: int = 0) -> Bandit:
    reference, rewards = tables(seed, ARMS, 1)
    return Bandit(reference, rewards[0])


def optimise(scheme: Scheme, problem: Bandit) -> dict[str, Any]:
    """Gradient ascent from the reference by E r minus beta times the scheme's gradient."""
    logits, curve = problem.reference.clone(), []
    for step in range(STEPS):
        if step & (step - 1) == 0:  # 0 and powers of two
            curve.append((step, problem.objective(logits)))
        probs = logits.softmax(-1)
        up = probs * (problem.rewards - probs @ problem.rewards)  # gradient of E r
        logits = logits + STEP_SIZE * (
            up - BETA * expected_gradient(scheme, logits, problem.reference, 1)
        )
    reached = problem.objective(logits)
    return {
        "objective": reached,
        "lost": problem.best - reached,
        "kl": kl_from_logits(logits, problem.reference).item(),
        "kl_optimum": kl_from_logits(logits, problem.optimum).item(),
        "curve": [*curve, (STEPS, reached)],
    }


def at_distance(nats: float, seed: int) -> Paths:
    """A policy at this KL from its reference, by bisection on the way into a random direction."""
    direction, reference = tables(seed, VOCABULARY, LONG)
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        at = paths(reference + middle * direction, reference, LONG)
        low, high = (middle, high) if exact_kl(at).item() < nats else (low, middle)
    return at


def moments(kind: str, at: Paths) -> tuple[float, float, float]:
    """Size of the bias and standard deviation of a sequence's estimate over the KL; share below 0.

    Token estimates are summed over the sequence, as in training.
    """
    if kind == "exact":
        values = rao_blackwell_kl(at.p_logits, at.q_logits)
    else:
        values = log_ratio_estimator(at.logp, at.logq, kind).sum(-1)  # type: ignore[arg-type]
    kl, mean = exact_kl(at).item(), (at.probs * values).sum()
    deviation = (at.probs * (values - mean).square()).sum().sqrt()
    return abs(mean.item() / kl - 1), deviation.item() / kl, at.probs[values < 0].sum().item()


COLUMNS = (
    ("estimate", "estimate", ""),
    ("place", "where", ""),
    ("error", "gradient error", ".1e"),
    ("least", "least", ".1e"),
    ("most", "most", ".1e"),
    ("cosine", "cosine", "+.3f"),
    ("objective", "objective", ".4f"),
    ("kl", "KL(π ‖ ref)", ".4f"),
    ("kl_optimum", "KL(π ‖ π*)", ".1e"),
)
VALUE_COLUMNS = (
    ("nats", "KL, nats per sequence", "g"),
    ("estimate", "estimate", ""),
    ("bias", "size of the bias / KL", ".4f"),
    ("deviation", "standard deviation / KL", ".3f"),
    ("negative", "below 0", ".1%"),
)


def scheme_table(problem: Bandit) -> list[dict[str, Any]]:
    """Every scheme's gradient error and what it reaches on the bandit; the optimum at the end."""
    rows: list[dict[str, Any]] = [
        {"estimate": scheme.estimate, "place": scheme.place}
        | gradient_errors(scheme)
        | optimise(scheme, problem)
        for scheme in SCHEMES
    ]
    optimum = {
        "estimate": "π* ∝ ref exp(r / β)",
        "objective": problem.best,
        "kl_optimum": 0.0,
        "kl": kl_from_logits(problem.optimum, problem.reference).item(),
    }
    return [*rows, optimum]


def value_table(distances: Sequence[float] = NATS) -> list[dict[str, Any]]:
    """Medians over the instances of bias, deviation and share below 0, in units of the KL."""
    rows = []
    for nats in distances:
        policies = [at_distance(nats, seed) for seed in range(INSTANCES)]
        for kind in KINDS:
            columns = zip(*(moments(kind, at) for at in policies), strict=True)
            named = zip(("bias", "deviation", "negative"), map(median, columns), strict=True)
            rows.append({"nats": nats, "estimate": kind} | dict(named))
    return rows


def main() -> None:
    options = cli.read_options(Options, "rlhf.experiments.study")
    out = Path(options.results)
    problem = bandit()
    schemes, values = scheme_table(problem), value_table()
    for name, columns, rows in (
        ("estimators.json", COLUMNS, schemes),
        ("estimator_values.json", VALUE_COLUMNS, values),
    ):
        print(markdown({"columns": describe_columns(columns), "rows": rows}))
        write_result(out / name, columns, rows, environment=describe(), settings=SETTINGS)
    pictures.study(schemes, values, problem.best, out / "estimators.png")
    print(f"tables and estimators.png in {out}")


if __name__ == "__main__":
    cli.run(main, "rlhf.experiments.study")
