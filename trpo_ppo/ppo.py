"""One gradient step over all processes' rows, minibatches, and what an update did to the policy."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shared.errors import UserError
from shared.kl import log_ratio_estimator
from shared.processes.distributed import all_reduce_max, all_reduce_sum
from shared.training.seeding import PERMUTATION, generator
from trpo_ppo.objective import explained_variance, surrogate, value_loss
from trpo_ppo.policy import Agent
from trpo_ppo.rollout import Batch
from trpo_ppo.trpo import flat


def passes(
    batch: Batch, size: int, seed: int, number: int, epochs: int
) -> Iterator[Iterator[Batch]]:
    """``epochs`` passes over the batch of rollout ``number``, each in an order of its own."""
    rng = generator("cpu", seed, PERMUTATION, number)
    for _ in range(epochs):
        yield minibatches(batch, size, rng)


def minibatches(batch: Batch, size: int, rng: torch.Generator) -> Iterator[Batch]:
    """One pass: this process's rows of every minibatch of ``size`` rows of all processes."""
    if size >= batch.total:  # taken whole, its order does not matter
        yield batch
        return
    own = len(batch.observations)
    for chosen in torch.randperm(batch.total, generator=rng).split(size):
        index = chosen
        if own < batch.total:
            index = chosen[(chosen >= batch.first) & (chosen < batch.first + own)] - batch.first
        yield batch.rows(index, len(chosen))


def descend(
    gradients: Sequence[Tensor],
    parameters: Sequence[nn.Parameter],
    optimizer: Optimizer,
    max_norm: float,
) -> float:
    """One step down the gradients, summed over processes; their norm before clipping.

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


@torch.no_grad()
def measure(agent: Agent, batch: Batch, clip: float) -> dict[str, Tensor]:
    """How far the update moved the policy, exactly and by estimates, over all states."""
    new = agent.policy(batch.observations)
    log_prob = new.log_prob(batch.actions)
    kl = batch.old.kl(new)  # type: ignore[arg-type]
    ratio = torch.exp(log_prob - batch.log_prob)
    sums = {
        "kl": kl,
        "kl_reverse": new.kl(batch.old),  # type: ignore[arg-type]
        "kl_k1": log_ratio_estimator(batch.log_prob, log_prob, kind="k1"),
        "kl_k3": log_ratio_estimator(batch.log_prob, log_prob, kind="k3"),
        "surrogate": surrogate(log_prob, batch.log_prob, batch.advantages),
        "value_loss": value_loss(agent.values(batch.observations), batch.targets),
        "clip_fraction": ((ratio - 1).abs() > clip).float(),
        "entropy": new.entropy().expand(len(kl)),
        "target": batch.targets,
        "target_square": batch.targets.square(),
        "error": batch.targets - batch.values,
        "error_square": (batch.targets - batch.values).square(),
    }
    means = all_reduce_sum(torch.stack([x.double().sum() for x in sums.values()])) / batch.total
    told = dict(zip(sums, means, strict=True))
    moments = [told.pop(name) for name in ("target", "target_square", "error", "error_square")]
    told["kl_max"] = all_reduce_max(kl.max())
    told["explained_variance"] = explained_variance(*moments)
    return told
