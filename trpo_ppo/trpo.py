"""Trust region policy optimisation: Schulman et al. 2015 (arXiv 1502.05477), section 6, appendix C.

The trust region takes functions of the parameters and knows neither networks nor processes:
``mean`` averages over all rows of all processes, so that all of them take the same decisions.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trpo_ppo.config import Config
from trpo_ppo.policy import Agent, flat
from trpo_ppo.ppo import clip_and_step, surrogate
from trpo_ppo.rollout import Batch, passes

Product = Callable[[Tensor], Tensor]
Mean = Callable[[Tensor], Tensor]


FAILURES = {  # why there was no step, by the name of its metric
    "no_gradient": "the surrogate has no gradient",
    "not_finite": "the gradient is not finite",
    "curvature": "x'Fx is not a positive finite number",
    "line_search": "the line search found no step within delta that improves the surrogate",
}


class Step(NamedTuple):
    """The outcome of an update; ``backtracks`` is how often the step was shortened."""

    accepted: bool
    backtracks: int
    kl: float  # KL(old || new), 0 if there was no step
    expected: float  # improvement of the surrogate by its linear model
    actual: float  # improvement of the surrogate, 0 if there was no step
    residual: float  # |F x - g| / |g| of the conjugate gradient
    failure: str  # one of FAILURES, or "" where it was taken


@torch.no_grad()
def assign(parameters: Sequence[Tensor], vector: Tensor) -> None:
    """Copy the parts of ``vector`` into the parameters, in place: what views them sees it."""
    for parameter, part in zip(
        parameters, vector.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.copy_(part.view_as(parameter))


def fisher_vector_product(
    kl: Tensor, parameters: Sequence[Tensor], mean: Mean, damping: float
) -> Product:
    """v -> (F + damping 1) v, with F the Hessian of KL(old || new) at new = old.

    The gradient of the KL is differentiated again (Pearlmutter 1994); where the two policies are
    one, the Hessian is the Fisher matrix (Schulman et al. 2015, appendix C.1).

    Args:
        kl: this process's rows of KL(old || new) per state, with a graph to ``parameters``.
        mean: sums over rows and processes and divides by the number of rows: of rows [n], or of
            this process's sum [parameters].
    """
    gradient = flat(torch.autograd.grad(kl.sum(), parameters, create_graph=True))

    def product(v: Tensor) -> Tensor:
        hv = torch.autograd.grad(gradient @ v, parameters, retain_graph=True)
        return mean(flat(hv)[None]) + damping * v

    return product


def conjugate_gradient(product: Product, b: Tensor, iterations: int, tolerance: float) -> Tensor:
    """x with A x = b for a symmetric positive A, from x = 0 (Hestenes and Stiefel 1952).

    Ends after ``iterations`` products, when |A x - b| <= tolerance |b|, or at a direction of
    non-positive or non-finite curvature, which it does not go along.
    """
    x, r = torch.zeros_like(b), b.clone()
    p, rr = b.clone(), b @ b
    enough = tolerance**2 * rr
    for _ in range(iterations):
        if rr <= enough:
            break
        ap = product(p)
        curvature = p @ ap
        if not (torch.isfinite(curvature) and curvature > 0):
            break
        alpha = rr / curvature
        x += alpha * p
        r -= alpha * ap
        rr, before = r @ r, rr
        p = r + (rr / before) * p
    return x


def natural_step(product: Product, x: Tensor, delta: float) -> Tensor | None:
    """sqrt(2 delta / x'Fx) x, the longest step of the quadratic model of the KL (appendix C).

    None where x'Fx is not a positive finite number.
    """
    curvature = x @ product(x)
    if not (torch.isfinite(curvature) and curvature > 0):
        return None
    return torch.sqrt(2 * delta / curvature) * x


def trust_region_step(
    objective: Callable[[], Tensor],
    kl: Callable[[], Tensor],
    parameters: Sequence[torch.nn.Parameter],
    mean: Mean,
    delta: float,
    damping: float,
    iterations: int,
    backtracks: int,
    shrink: float = 0.8,
    tolerance: float = 1e-6,
) -> Step:
    """Move ``parameters`` up the surrogate within KL(old || new) <= delta, or leave them alone.

    The step is shortened by ``shrink`` until the mean KL over all states is within delta and the
    surrogate has grown. If it never is, the parameters are what they were, to the last bit.

    Args:
        objective: the surrogate, rho A of this process's rows at the present parameters, [n].
        kl: KL(old || new) of this process's rows, [n].
        mean: see ``fisher_vector_product``.
    """
    before = flat(parameters).detach()
    value = objective()
    start = mean(value.detach()).item()
    gradient = mean(flat(torch.autograd.grad(value.sum(), parameters))[None])
    # The step does not depend on the gradient's length, and huge advantages would overflow.
    length = gradient.abs().max()
    if not torch.isfinite(length):
        return Step(False, 0, 0.0, 0.0, 0.0, 0.0, "not_finite")
    if length == 0:
        return Step(False, 0, 0.0, 0.0, 0.0, 0.0, "no_gradient")
    gradient = gradient / length
    product = fisher_vector_product(kl(), parameters, mean, damping)
    x = conjugate_gradient(product, gradient, iterations, tolerance)
    residual = ((product(x) - gradient).norm() / gradient.norm()).item()
    step = natural_step(product, x, delta)
    if step is None:
        return Step(False, 0, 0.0, 0.0, 0.0, residual, "curvature")
    expected = ((gradient @ step) * length).item()
    with torch.no_grad():
        for tried in range(backtracks + 1):
            assign(parameters, before + shrink**tried * step)
            moved, gained = mean(kl()).item(), mean(objective()).item() - start
            if moved <= delta and gained > 0:  # NaN is neither
                return Step(True, tried, moved, expected, gained, residual, "")
        assign(parameters, before)
    return Step(False, backtracks, 0.0, expected, 0.0, residual, "line_search")


def trpo_update(
    config: Config, agent: Agent, optimizer: torch.optim.Optimizer, batch: Batch, n: int
) -> dict[str, Tensor | float]:
    """One trust-region step of the policy (Schulman et al. 2015), then epochs of the critic."""

    def ascent() -> Tensor:
        log_prob = agent.policy(batch.observations).log_prob(batch.actions)
        return surrogate(log_prob, batch.log_prob, batch.advantages)

    step = trust_region_step(
        ascent,
        lambda: batch.old.kl(agent.policy(batch.observations)),  # type: ignore[arg-type]
        agent.policy_parameters(),
        batch.mean,
        config.delta,
        config.damping,
        config.cg_iterations,
        config.backtracks,
    )
    for one_pass in passes(batch, config.minibatch, config.seed, n, config.epochs):
        for rows in one_pass:
            gradient = agent.value_gradient(rows.observations, rows.targets, 1 / rows.total)
            clip_and_step([gradient], [agent.critic.flat], optimizer, config.max_gradient)
    return {
        "backtracks": step.backtracks,
        "expected_improvement": step.expected,
        "actual_improvement": step.actual,
        "cg_residual": step.residual,
        "failed_steps": float(not step.accepted),
        **{f"failed_{why}": float(step.failure == why) for why in FAILURES},
    }
