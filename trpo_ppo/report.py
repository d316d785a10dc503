"""What a training run says at its start and leaves at its end: model folder, pictures, summary."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.cli import with_resume_cleared
from shared.errors import full_disk_is_a_user_error
from shared.processes.distributed import world_size
from shared.run.checkpoint import write_folder
from shared.run.folder import read_metrics, write_json
from shared.run.report import push
from shared.run.run import Run
from trpo_ppo import pictures
from trpo_ppo.config import Config
from trpo_ppo.evaluate import evaluate, headline
from trpo_ppo.policy import Agent
from trpo_ppo.trpo import FAILURES

DIALS = {"ppo-clip": "clip", "ppo-kl": "beta", "ppo-kl-adaptive": "delta", "trpo": "delta"}


def introduce(run: Run, config: Config, agent: Agent, rollouts: int) -> None:
    """Print the batch arithmetic, the number of parameters and the dial."""
    size, dial = config.num_envs * config.rollout, DIALS[config.algo]
    parameters = sum(p.numel() for p in agent.parameters())
    run.say(
        f"run      {run.folder}\n"
        f"model    {agent.kind} policy and value function, {parameters:,} parameters\n"
        f"task     {config.env}, {config.algo}, {dial} {getattr(config, dial):g}, "
        f"{'normalised' if config.normalise else 'plain'} observations and rewards\n"
        f"batch    {size:,} = {world_size()} process(es) x {config.num_envs // world_size()} "
        f"environments x {config.rollout} steps; {rollouts:,} rollouts = "
        f"{rollouts * size:,} steps\n"
        f"units    KL in nats per state, score = undiscounted return of an episode"
    )


def tell(run: Run, config: Config, metrics: dict[str, float], rollouts: int) -> None:
    """A line of metrics.jsonl per rollout; for people one now and then, and where TRPO failed."""
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


def finish(run: Run, config: Config, agent: Agent) -> None:
    """Evaluate the trained policy and write model/, pictures/ and summary.json of the run."""
    seconds = round(run.elapsed(), 1)
    run.say("evaluating ...")
    records = read_metrics(run.folder)
    about = {"preset": run.preset, "config": asdict(with_resume_cleared(config))}
    metrics = evaluate(agent, config.env, config.evaluation_episodes)
    save_model(agent, run.folder / "model", about, metrics)
    with full_disk_is_a_user_error(run.folder / "pictures"):
        (run.folder / "pictures").mkdir(exist_ok=True)
        pictures.curves(records, config, run.folder / "pictures" / "curves.png")
    last = {key: value for key, value in records[-1].items() if key != "step"}
    summary = {
        "steps": run.step,
        "training_seconds": seconds,
        "training": last,
        "evaluation": metrics,
    }
    write_json(run.folder / "summary.json", summary)
    run.say(
        f"\n{headline(metrics)}\n\ntrained in {seconds:.0f} s, all in {run.elapsed():.0f} s; "
        f"pictures in {run.folder / 'pictures'}, model in {run.folder / 'model'}"
    )
    if config.push_to_hub:
        run.say(f"uploaded to {push(run.folder / 'model', config.push_to_hub)}")


def save_model(agent: Agent, path: Path, about: dict[str, Any], metrics: dict[str, Any]) -> None:
    """A folder that ``from_pretrained`` and ``trpo_ppo.evaluate`` read, with its card."""

    def write(folder: Path) -> None:
        agent.save_pretrained(folder)
        write_json(folder / "training.json", about)
        write_json(folder / "metrics.json", metrics)
        (folder / "README.md").write_text(card(about, metrics))

    write_folder(path, write)


def card(about: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained, what it reached, how to load it."""
    config = about["config"]
    told = (
        "env",
        "algo",
        DIALS[config["algo"]],
        "steps",
        "num_envs",
        "rollout",
        "gamma",
        "lam",
        "epochs",
        "minibatch",
        "lr",
        "width",
        "depth",
        "normalise",
        "seed",
    )
    options = "\n".join(f"| {name} | {config[name]} |" for name in told)
    return f"""---
license: apache-2.0
library_name: kl-zoo
tags: [reinforcement-learning, {config["env"]}, {config["algo"]}]
---
# {config["env"]} by {config["algo"]}, preset `{about["preset"]}` of KL Zoo

Undiscounted return of an episode:

```
{headline(metrics)}
```

| option | value |
|---|---|
{options}

```python
from trpo_ppo.policy import Agent

agent = Agent.from_pretrained("path/to/this/folder")
```

The moments that normalise observations are among the weights. Limits: made for this environment in
simulation; the scores say nothing about another version of it.
"""
