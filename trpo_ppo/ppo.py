"""PPO: Schulman et al. 2017 (arXiv 1707.06347), its objectives, their gradients and the update.

Notation: rho = pi_new(a|s) / pi_old(a|s), A the advantage, eps the clip range; nats.

A minibatch of 64 is so little work that autograd's bookkeeping would take three quarters of an
update, hence the derivatives written out below; tests compare them with autograd's of
``policy_objective``. A derivative has the type of the distribution: for every parameter, the
derivative with respect to it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shared.errors import UserError
from shared.kl import kl_early_stop, kl_from_logits_gradient, kl_normal_gradient
from shared.processes.distributed import all_reduce_sum
from trpo_ppo.config import Config
from trpo_ppo.policy import Agent, Categorical, Distribution, Gaussian, flat
from trpo_ppo.rollout import Batch, passes


def surrogate(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor) -> Tensor:
    """rho A: Schulman et al. 2017, eq. 6, and 2015 (arXiv 1502.05477), eq. 14. [batch]."""
    return torch.exp(log_prob - old_log_prob) * advantages


def policy_objective(config: Config, new: Distribution, rows: Batch, beta: float) -> Tensor:
    """The objective that PPO maximises, summed over rows, with an entropy bonus; [].

    Schulman et al. 2017: eq. 7, min(rho A, clip(rho, 1 - eps, 1 + eps) A), or eq. 8,
    rho A - beta KL(old || new).
    """
    ratio = torch.exp(new.log_prob(rows.actions) - rows.log_prob)
    if config.algo == "ppo-clip":
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        value = torch.minimum(ratio * rows.advantages, clipped * rows.advantages)
    else:
        value = ratio * rows.advantages - beta * rows.old.kl(new)  # type: ignore[arg-type]
    return (value + config.entropy * new.entropy()).sum()


def policy_gradient(config: Config, new: Distribution, rows: Batch, beta: float) -> Distribution:
    """Derivative of ``policy_objective`` with respect to the outputs of each row."""
    ratio = torch.exp(new.log_prob(rows.actions) - rows.log_prob)
    if config.algo == "ppo-clip":
        by_log_prob = clipped_gradient(ratio, rows.advantages, config.clip)
    else:
        by_log_prob = ratio * rows.advantages
    gradient = log_prob_gradient(new, rows.actions, by_log_prob)
    if config.algo != "ppo-clip" and beta:
        gradient = plus(gradient, kl_gradient(rows.old, new), -beta)
    if config.entropy:
        gradient = plus(gradient, entropy_gradient(new), config.entropy)
    return gradient


def clipped_gradient(ratio: Tensor, advantages: Tensor, eps: float) -> Tensor:
    """Derivative of eq. 7 with respect to log pi_new: [batch].

    rho A, and 0 where the clipped term is the smaller one: rho has gone beyond the range in the
    direction that pays.
    """
    beyond = torch.where(advantages > 0, ratio > 1 + eps, ratio < 1 - eps)
    return torch.where(beyond, 0.0, ratio * advantages)


def log_prob_gradient(new: Distribution, actions: Tensor, weights: Tensor) -> Distribution:
    """Derivative of sum_i weights_i log pi(a_i|s_i) with respect to the outputs of each row."""
    w = weights[:, None]
    if isinstance(new, Gaussian):
        precision = torch.exp(-new.logvar)
        error = actions - new.mean
        scaled = w * error * precision
        return Gaussian(scaled, 0.5 * ((scaled * error).sum(0) - weights.sum()))
    gradient = -w * new.logits.softmax(-1)
    return Categorical(gradient.scatter_add_(-1, actions.long(), w))


def kl_gradient(old: Distribution, new: Distribution) -> Distribution:
    """Derivative of sum_i KL(old_i || new_i) with respect to the outputs of ``new``."""
    if isinstance(old, Gaussian) and isinstance(new, Gaussian):
        mean, logvar = kl_normal_gradient(old.mean, old.logvar, new.mean, new.logvar)
        return Gaussian(mean, logvar.sum(0))
    assert isinstance(old, Categorical)
    assert isinstance(new, Categorical)
    return Categorical(kl_from_logits_gradient(old.logits, new.logits))


def entropy_gradient(new: Distribution) -> Distribution:
    """Derivative of sum_i H(pi(.|s_i)) with respect to the outputs."""
    if isinstance(new, Gaussian):
        return Gaussian(torch.zeros_like(new.mean), torch.full_like(new.logvar, len(new.mean) / 2))
    log_p = new.logits.log_softmax(-1)
    p = log_p.exp()
    return Categorical(-p * (log_p - (p * log_p).sum(-1, keepdim=True)))


def plus(a: Distribution, b: Distribution, factor: float) -> Distribution:
    """a + factor b, of two derivatives of one kind."""
    if isinstance(a, Gaussian) and isinstance(b, Gaussian):
        return Gaussian(a.mean + factor * b.mean, a.logvar + factor * b.logvar)
    assert isinstance(a, Categorical)
    assert isinstance(b, Categorical)
    return Categorical(a.logits + factor * b.logits)


@torch.no_grad()
def ppo_update(
    config: Config,
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    beta: float,
    n: int,
) -> dict[str, Tensor | float]:
    """Epochs of minibatch steps on one rollout, the ``n``-th: Schulman et al. 2017, Algorithm 1."""
    parameters = [agent.critic.flat, *agent.policy_parameters()]
    done, norms = 0, 0.0
    for one_pass in passes(batch, config.minibatch, config.seed, n, config.epochs):
        for rows in one_pass:
            values = agent.actor.run(rows.observations)
            new = agent.distribution(torch.from_numpy(values[-1]))
            up, *log_var = policy_gradient(config, new, rows, beta)
            gradients = [
                agent.value_gradient(
                    rows.observations, rows.targets, config.value_coefficient / rows.total
                ),
                agent.actor.backward(values, up / -rows.total),
                *(2 * g / -rows.total for g in log_var),  # log variance = 2 log_std
            ]
            norms += clip_and_step(gradients, parameters, optimizer, config.max_gradient)
            done += 1
        if config.early_stop and kl_early_stop(mean_kl(agent, batch), config.early_stop):
            break
    return {"gradient_norm": norms / done, "gradient_steps": done}


def clip_and_step(
    gradients: Sequence[Tensor],
    parameters: Sequence[nn.Parameter],
    optimizer: Optimizer,
    max_norm: float,
) -> float:
    """One step of the optimiser with the gradients summed over processes; returns their norm.

    Longer gradients are scaled down to ``max_norm``.

    Raises:
        UserError: the gradient is not finite; nothing was changed.
    """
    gradient = all_reduce_sum(flat(gradients))
    norm = gradient.norm().item()
    if not norm < float("inf"):
        raise UserError(
            f"gradient norm {norm}: not applied; a new run with a smaller --lr may "
            f"help, --resume goes on from the newest checkpoint"
        )
    if norm > max_norm:
        gradient *= max_norm / norm
    for parameter, part in zip(
        parameters, gradient.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = part.view_as(parameter)
    optimizer.step()
    return norm


@torch.no_grad()
def mean_kl(agent: Agent, batch: Batch) -> float:
    """KL(old || new) over all states of all processes, in nats per state."""
    kl = batch.old.kl(agent.policy(batch.observations))  # type: ignore[arg-type]
    return (all_reduce_sum(kl.sum()) / batch.total).item()
