"""The lines at a run's start, the metrics of an update, and the files at a run's end."""

import math
from typing import Any

import torch
from torch import Tensor

from shared.kl import log_ratio_estimator
from shared.processes.distributed import all_reduce_max, all_reduce_sum, world_size
from shared.run import report
from shared.run.folder import read_metrics
from shared.run.run import Run
from trpo_ppo import pictures
from trpo_ppo.config import Config
from trpo_ppo.evaluate import evaluate, headline
from trpo_ppo.policy import Agent
from trpo_ppo.rollout import Batch
from trpo_ppo.trpo import FAILURES

# The one option of each algorithm that sets how far a step may go.
STEP_SIZE = {"ppo-clip": "clip", "ppo-kl": "beta", "ppo-kl-adaptive": "delta", "trpo": "delta"}


def print_run(run: Run, config: Config, agent: Agent, rollouts: int) -> None:
    """Print the batch arithmetic, the number of parameters and the size of a step."""
    size, name = config.num_envs * config.rollout, STEP_SIZE[config.algo]
    report.print_setup(
        run,
        model=f"{agent.kind} policy and value function, "
        f"{sum(p.numel() for p in agent.parameters()):,} parameters",
        task=f"{config.env}, {config.algo}, {name} {getattr(config, name):g}, "
        f"{'normalised' if config.normalise else 'plain'} observations and rewards",
        batch=f"{size:,} = {world_size()} process(es) x {config.num_envs // world_size()} "
        f"environments x {config.rollout} steps; {rollouts:,} rollouts = "
        f"{rollouts * size:,} steps",
        units="KL in nats per state, score = undiscounted return of an episode",
    )


@torch.no_grad()
def measure(agent: Agent, batch: Batch, clip: float) -> dict[str, Tensor]:
    """Metrics of an update over all states: the KL, exactly and by estimates, and the losses."""
    new = agent.policy(batch.observations)
    log_prob = new.log_prob(batch.actions)
    kl = batch.old.kl(new)  # type: ignore[arg-type]
    ratio = torch.exp(log_prob - batch.log_prob)
    sums = {
        "kl": kl,
        "kl_reverse": new.kl(batch.old),  # type: ignore[arg-type]
        "kl_k1": log_ratio_estimator(batch.log_prob, log_prob, kind="k1"),
        "kl_k3": log_ratio_estimator(batch.log_prob, log_prob, kind="k3"),
        "surrogate": ratio * batch.advantages,
        "value_loss": (agent.values(batch.observations) - batch.targets).square(),
        "clip_fraction": ((ratio - 1).abs() > clip).float(),
        "entropy": new.entropy().expand(len(kl)),
        "target": batch.targets,
        "target_square": batch.targets.square(),
        "error": batch.targets - batch.values,
        "error_square": (batch.targets - batch.values).square(),
    }
    means = all_reduce_sum(torch.stack([x.double().sum() for x in sums.values()])) / batch.total
    metrics = dict(zip(sums, means, strict=True))
    moments = [metrics.pop(name) for name in ("target", "target_square", "error", "error_square")]
    metrics["kl_max"] = all_reduce_max(kl.max())
    metrics["explained_variance"] = explained_variance(*moments)
    return metrics


def explained_variance(
    target: Tensor, target_square: Tensor, error: Tensor, error_square: Tensor
) -> Tensor:
    """1 - Var[target - V] / Var[target] from means of those and of their squares: [].

    1 is perfect, 0 no better than the mean; 0 where all targets are equal.
    """
    variance = target_square - target.square()
    rest = error_square - error.square()
    return torch.where(variance > 0, 1 - rest / variance, 0.0)


def report_rollout(run: Run, config: Config, metrics: dict[str, float], rollouts: int) -> None:
    """Record a rollout's metrics; print a line for every twentieth, and where TRPO failed."""
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    steps = run.epoch * config.num_envs * config.rollout
    run.record({"environment_steps": steps} | metrics)
    for failure, what in FAILURES.items():
        if metrics.get(f"failed_{failure}"):
            run.say(f"rollout {run.epoch}/{rollouts}: no step of the policy, {what}")
    if run.epoch % max(1, rollouts // 20) and run.epoch != rollouts:
        return
    score = f"{metrics['score']:.1f}" if "score" in metrics else "none yet"
    extra = f", beta {metrics['beta']:g}" if "beta" in metrics else ""
    run.say(
        f"rollout {run.epoch}/{rollouts}, {steps:,} steps, {run.elapsed():.0f} s: score {score}, "
        f"KL {metrics['kl']:.4f} (max {metrics['kl_max']:.3f}){extra}"
    )


def write_outputs(run: Run, config: Config, agent: Agent) -> None:
    """Evaluate the trained policy and write model/, pictures/ and summary.json of the run."""
    seconds = round(run.elapsed(), 1)
    run.say("evaluating ...")
    metrics = evaluate(agent, config.env, config.evaluation_episodes)
    settings = report.training_settings(run.preset, config)
    text = card(settings, metrics)
    report.write_trained(run, agent.save_pretrained, text, settings, metrics)
    with report.pictures_folder(run) as folder:
        pictures.curves(read_metrics(run.folder), config, folder / "curves.png")
    report.finish_run(
        run,
        report.training_summary(run, seconds) | {"evaluation": metrics},
        f"\n{headline(metrics)}\n\ntrained in {seconds:.0f} s, all in {run.elapsed():.0f} s; "
        f"pictures in {folder}, model in {run.folder / 'model'}",
    )


def card(settings: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained, what it reached, how to load it."""
    config = settings["config"]
    env, algo = config["env"], config["algo"]
    names = f"""env algo {STEP_SIZE[algo]} steps num_envs rollout gamma lam epochs minibatch lr
        width depth normalise seed""".split()
    return report.model_card(
        f"{env} by {algo}, preset `{settings['preset']}` of KL Zoo",
        ["reinforcement-learning", env, algo],
        result=f"Undiscounted return of an episode:\n\n```\n{headline(metrics)}\n```",
        options={name: config[name] for name in names},
        code="from trpo_ppo.policy import Agent\n\n"
        'agent = Agent.from_pretrained("path/to/this/folder")',
        note="The moments that normalise observations are among the weights. Limits: made for this "
        "environment in\nsimulation; the scores say nothing about another version of it.",
    )
