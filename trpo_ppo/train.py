"""Train a policy: ``python -m trpo_ppo.train [preset] [--env Hopper-v5] [--algo trpo ...]``."""

import argparse
import os
from typing import Any, get_args

import torch

from shared import cli
from shared.errors import UserError
from shared.kl import PPOPenalty
from shared.processes.distributed import assert_equal_everywhere, own_rows, world_size
from shared.processes.launch import start
from shared.run.run import Run
from trpo_ppo.config import Algorithm, Config, presets
from trpo_ppo.envs import Environments
from trpo_ppo.policy import Agent, flat
from trpo_ppo.ppo import ppo_update
from trpo_ppo.report import measure, print_run, report_rollout, write_outputs
from trpo_ppo.rollout import collect, finished, prepare, reward_scale
from trpo_ppo.state import State
from trpo_ppo.trpo import trpo_update


def train(preset: str, config: Config) -> None:
    """The whole of training, from environments to the run folder's summary."""
    accelerator = start(config, cpu=True)
    N, T = config.num_envs, config.rollout  # noqa: N806
    if N % world_size():
        raise UserError(f"--num-envs {N}: must be divisible by the {world_size()} processes")
    own = own_rows(torch.arange(N)).tolist()
    envs = Environments(config.env, config.seed, own, config.gamma)
    spaces = envs.interface
    agent = Agent(
        spaces.observations,
        spaces.actions,
        spaces.kind,
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
    print_run(run, config, agent, rollouts)
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
                    metrics = trpo_update(config, agent, optimizer, batch, run.step)
                case "ppo-clip" | "ppo-kl" | "ppo-kl-adaptive":
                    metrics = ppo_update(config, agent, optimizer, batch, beta, run.step)
            metrics |= measure(agent, batch, config.clip)
            if config.algo == "ppo-kl-adaptive":
                metrics["beta"] = beta
                penalty = PPOPenalty(beta, config.delta)  # Schulman et al. 2017, section 4
                state.beta.fill_(penalty.update(float(metrics["kl"])))
            assert_equal_everywhere(flat([agent.critic.flat, *agent.policy_parameters()]))
            agent.moments.update(torch.from_numpy(rollout.raw).flatten(0, 1))
            state.remember(envs, finished(rollout))
            metrics["score"] = state.score()
            run.stepped(**{name: torch.as_tensor(value) for name, value in metrics.items()})
        report_rollout(run, config, run.end_epoch(), rollouts)
        if run.epoch % config.checkpoint_every == 0:
            run.save()

    envs.close()
    if run.close():
        write_outputs(run, config, agent)


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
