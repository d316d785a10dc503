"""What a PPO run says at its start, in between, and leaves at its end."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf import pictures
from rlhf.config import Config, LanguageConfig
from rlhf.evaluate import evaluate, headline, samples
from rlhf.policies import save_model
from rlhf.policy import Policy
from rlhf.prompts import Prompts, read_prompts
from rlhf.task import Task
from shared.errors import full_disk_is_a_user_error
from shared.kl import log_ratio_estimator
from shared.processes.distributed import world_size
from shared.run.folder import read_metrics, write_json
from shared.run.report import push
from shared.run.run import Run


def introduce(run: Run, config: Config, policy: Policy, prompts: Prompts) -> None:
    """Print the batch arithmetic, the sizes and the units."""
    total = sum(p.numel() for p in policy.parameters())
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    size = config.batch_size
    target = f", steered to {config.kl_target:g} nats" if config.kl_target else ""
    run.say(
        f"run      {run.folder}\n"
        f"model    {config.model}, {total:,} parameters, {trained:,} of them trained; "
        f"critic {config.critic}\n"
        f"reward   {' '.join(config.reward)}; beta {config.beta:g} by {config.kl}{target}\n"
        f"data     {len(prompts.texts):,} prompts, completions of {config.completion} tokens\n"
        f"batch    {size} completions = {world_size()} process(es) x {size / world_size():g}; "
        f"{config.epochs} passes of {config.minibatches} step(s); {config.iterations} rollouts\n"
        f"units    KL in nats per sequence, unless said"
    )


def summarise(
    said: dict[str, Tensor],
    mask: Tensor,
    scores: Tensor,
    ended: Tensor,
    beta: float,
    target: Tensor,
) -> dict[str, float]:
    """Means over a rollout: KLs, entropy, lengths, and how well the values explained the targets.

    Names as TRL's, KLs in nats.
    """
    kl = torch.where(mask, said["kl"], 0.0).sum(1)
    k1 = log_ratio_estimator(said["log_prob"], said["reference"], "k1", mask=mask).sum(1)
    tokens = mask.sum()
    error, wanted = (target - said["value"])[mask], target[mask]
    return {
        "objective/kl": kl.mean().item(),
        "objective/kl_k1": k1.mean().item(),
        "objective/kl_per_token": (kl.sum() / tokens).item(),
        "objective/entropy_per_token": (said["entropy"][mask].sum() / tokens).item(),
        "objective/scores": scores.mean().item(),
        "objective/rlhf_reward": (scores.mean() - beta * kl.mean()).item(),
        "kl_coef": beta,
        "completions/mean_length": (tokens / len(mask)).item(),
        "completions/eos_rate": ended.double().mean().item(),
        "val/explained_variance": 1 - (error.var() / wanted.var().clamp(min=1e-8)).item(),
    }


def tell(run: Run, config: Config, metrics: dict[str, float]) -> None:
    """A line of metrics.jsonl for every rollout, a line for people now and then."""
    run.record(metrics)
    if run.epoch % max(1, config.iterations // 20) and run.epoch != config.iterations:
        return
    rewards = ", ".join(
        f"{name.removeprefix('rewards/').removesuffix('/mean')} {value:.3f}"
        for name, value in metrics.items()
        if name.startswith("rewards/")
    )
    run.say(
        f"rollout {run.epoch}/{config.iterations}, {run.elapsed():.0f} s: {rewards}, "
        f"KL {metrics['objective/kl']:.2f} nats, beta {metrics['kl_coef']:.3g}"
    )


def finish(
    run: Run, config: LanguageConfig, policy: Policy, task: Task, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Evaluate on held-out prompts and write model/, pictures/ and summary.json of the run."""
    seconds = round(run.elapsed(), 1)
    run.say("evaluating ...")
    records = [r for r in read_metrics(run.folder) if "objective/kl" in r]
    with full_disk_is_a_user_error(run.folder / "pictures"):
        (run.folder / "pictures").mkdir(exist_ok=True)
        pictures.training(records, task.names, run.folder / "pictures" / "training.png")
    summary = {"steps": run.step, "training_seconds": seconds, "training": records[-1]}
    leave(run, config, policy, task, tokenizer, summary)


def leave(
    run: Run,
    config: LanguageConfig,
    policy: Policy,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    summary: dict[str, Any],
) -> None:
    """model/ and summary.json, and what was reached on held-out prompts."""
    prompts = read_prompts(
        "--prompts",
        config.prompts,
        tokenizer,
        config.max_prompt,
        held_out=True,
        limit=config.evaluation_prompts,
    )
    metrics = evaluate(policy, task, prompts)
    save_model(
        run.folder / "model",
        run.preset,
        config,
        policy.model,
        tokenizer,
        metrics,
        card(run.preset, config, metrics),
    )
    write_json(run.folder / "summary.json", summary | {"evaluation": metrics})
    run.say(
        f"\n{headline(metrics)}\n\n{samples(metrics)}\n\nin {run.elapsed():.0f} s; pictures "
        f"in {run.folder / 'pictures'}, model in {run.folder / 'model'}"
    )
    if config.push_to_hub:
        run.say(f"uploaded to {push(run.folder / 'model', config.push_to_hub)}")


def card(preset: str, config: LanguageConfig, metrics: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained, what it reached, how to load it."""
    told = tuple(
        """
        model lora prompts completion reward beta kl kl_target iterations batch_size epochs lr
        seed
    """.split()
    )
    options = "\n".join(f"| {n} | {getattr(config, n)} |" for n in told if hasattr(config, n))
    return f"""---
license: apache-2.0
library_name: peft
tags: [rlhf, kl-zoo]
---
# {config.model} trained by {config.METHOD}, preset `{preset}` of KL Zoo

On {metrics["prompts"]} held-out prompts, one completion each:

```
{headline(metrics)}
```

| option | value |
|---|---|
{options}

```python
from pathlib import Path
from rlhf.policies import load_policy

policy, tokenizer, about = load_policy("path/to/this/folder", Path("data"))
```

Limits: it was taught to please one small reward on openings of film reviews, nothing else; it says
untrue things in a pleasant tone.
"""
