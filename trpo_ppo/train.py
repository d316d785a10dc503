"""Train a policy: ``python -m trpo_ppo.train [preset] [--env Hopper-v5] [--algo trpo ...]``."""

import argparse
import os
from typing import Any, get_args

import torch
from torch import Tensor

from shared import cli
from shared.errors import UserError
from shared.kl import PPOPenalty, kl_early_stop
from shared.processes.distributed import assert_equal_everywhere, own_rows, world_size
from shared.processes.launch import start
from shared.run.run import Run
from trpo_ppo.config import Algorithm, Config, presets
from trpo_ppo.envs import Environments
from trpo_ppo.objective import (
    add,
    clipped_slope,
    d_entropy,
    d_kl,
    d_log_prob,
    surrogate,
    surrogate_slope,
)
from trpo_ppo.policy import Agent, Distribution
from trpo_ppo.ppo import descend, mean_kl, measure, passes
from trpo_ppo.report import finish, introduce, tell
from trpo_ppo.rollout import Batch, collect, finished, prepare, reward_scale
from trpo_ppo.state import State
from trpo_ppo.trpo import FAILURES, flat, trust_region_step

Told = dict[str, Tensor | float]


def policy_slope(config: Config, new: Distribution, rows: Batch, beta: float) -> Distribution:
    """Derivative of what PPO maximises, summed over rows: Schulman et al. 2017, eq. 7 or 8."""
    ratio = torch.exp(new.log_prob(rows.actions) - rows.log_prob)
    if config.algo == "ppo-clip":
        slope = clipped_slope(ratio, rows.advantages, config.clip)
    else:
        slope = surrogate_slope(ratio, rows.advantages)
    found = d_log_prob(new, rows.actions, slope)
    if config.algo != "ppo-clip" and beta:
        found = add(found, d_kl(rows.old, new), -beta)
    return add(found, d_entropy(new), config.entropy) if config.entropy else found


@torch.no_grad()
def value_gradient(agent: Agent, rows: Batch, weight: float) -> Tensor:
    """Gradient of weight times the mean of (V - target)^2, this process's share of it."""
    values = agent.critic.run(rows.observations)
    error = torch.from_numpy(values[-1]) - rows.targets[:, None]
    return agent.critic.backward(values, error * (2 * weight / rows.total))


@torch.no_grad()
def ppo_update(
    config: Config,
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    beta: float,
    n: int,
) -> Told:
    """Epochs of minibatch steps on one rollout, the ``n``-th: Schulman et al. 2017, Algorithm 1."""
    parameters = [agent.critic.flat, *agent.policy_parameters()]
    done, norms = 0, 0.0
    for one_pass in passes(batch, config.minibatch, config.seed, n, config.epochs):
        for rows in one_pass:
            values = agent.actor.run(rows.observations)
            new = agent.distribution(torch.from_numpy(values[-1]))
            up, *log_var = policy_slope(config, new, rows, beta)
            gradients = [
                value_gradient(agent, rows, config.value_coefficient),
                agent.actor.backward(values, up / -rows.total),
                *(2 * g / -rows.total for g in log_var),  # log variance = 2 log_std
            ]
            norms += descend(gradients, parameters, optimizer, config.max_gradient)
            done += 1
        if config.early_stop and kl_early_stop(mean_kl(agent, batch), config.early_stop):
            break
    return {"gradient_norm": norms / done, "gradient_steps": done}


def trpo_update(
    config: Config, agent: Agent, optimizer: torch.optim.Optimizer, batch: Batch, n: int
) -> Told:
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
            gradient = value_gradient(agent, rows, 1.0)
            descend([gradient], [agent.critic.flat], optimizer, config.max_gradient)
    return {
        "backtracks": step.backtracks,
        "expected_improvement": step.expected,
        "actual_improvement": step.actual,
        "cg_residual": step.residual,
        "failed_steps": float(not step.accepted),
        **{f"failed_{why}": float(step.failure == why) for why in FAILURES},
    }


def train(preset: str, config: Config) -> None:
    """The whole of training, from environments to the run folder's summary."""
    accelerator = start(config, cpu=True)
    N, T = config.num_envs, config.rollout  # noqa: N806
    if N % world_size():
        raise UserError(f"--num-envs {N}: must be divisible by the {world_size()} processes")
    own = own_rows(torch.arange(N)).tolist()
    envs = Environments(config.env, config.seed, own, config.gamma)
    face = envs.interface
    agent = Agent(
        face.observations,
        face.actions,
        face.kind,
        config.width,
        config.depth,
        config.log_std,
        config.normalise,
    )
    state = State(agent, envs, N, config.beta)
    learned = [agent.critic.flat, *(agent.policy_parameters() if config.algo != "trpo" else [])]
    optimizer = torch.optim.Adam(learned, lr=config.lr, eps=1e-5, fused=True)
    run = Run("trpo-ppo", preset, config, accelerator)
    rollouts = -(-config.steps // (N * T))
    introduce(run, config, agent, rollouts)
    run.attach(state, [optimizer])
    if config.resume:
        state.restore(envs)

    while run.epoch < rollouts:
        if not run.steps_in_epoch:  # else it was stopped between an update and its record
            rollout = collect(agent, envs, T, N, config.seed, run.step)
            scale = reward_scale(rollout, state.returns) if config.normalise else 1.0
            batch = prepare(agent, rollout, scale, N * T, config.gamma, config.lam, own[0] * T)
            if config.anneal:
                optimizer.param_groups[0]["lr"] = config.lr * (1 - run.step / rollouts)
            beta = state.beta.item()
            match config.algo:
                case "trpo":
                    told = trpo_update(config, agent, optimizer, batch, run.step)
                case "ppo-clip" | "ppo-kl" | "ppo-kl-adaptive":
                    told = ppo_update(config, agent, optimizer, batch, beta, run.step)
            told |= measure(agent, batch, config.clip)
            if config.algo == "ppo-kl-adaptive":
                told["beta"] = beta
                penalty = PPOPenalty(beta, config.delta)  # Schulman et al. 2017, section 4
                state.beta.fill_(penalty.update(float(told["kl"])))
            assert_equal_everywhere(flat([agent.critic.flat, *agent.policy_parameters()]))
            agent.moments.update(torch.from_numpy(rollout.raw).flatten(0, 1))
            state.remember(envs, finished(rollout))
            told["score"] = state.score()
            run.stepped(**{name: torch.as_tensor(value) for name, value in told.items()})
        tell(run, config, run.end_epoch(), rollouts)
        if run.epoch % config.checkpoint_every == 0:
            run.save()

    envs.close()
    if run.close():
        finish(run, config, agent)


def main() -> None:
    # The environment and the algorithm decide what the other options default to.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--env", default=Config.env)
    first.add_argument("--algo", default=Config.algo)
    chosen, _ = first.parse_known_args()
    algo: Any = chosen.algo if chosen.algo in get_args(Algorithm) else Config.algo
    preset, config = cli.read_config(presets(chosen.env, algo), "python -m trpo_ppo.train")
    os.environ["ACCELERATE_USE_CPU"] = "true"  # networks so small gain nothing from a GPU
    train(preset, config)


if __name__ == "__main__":
    cli.run(main, "trpo_ppo.train")
