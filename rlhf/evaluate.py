"""Measure a trained policy beside its reference: ``python -m rlhf.evaluate [--model RUN]``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from rlhf.config import LanguageConfig
from rlhf.policies import load_policy
from rlhf.policy import Policy
from rlhf.prompts import Prompts, prompts_of
from rlhf.rewards.environment import Environment
from rlhf.rollout import Completions, score_tokens, uniforms
from shared import cli
from shared.config import Between, CountOrZero, EvaluationOptions
from shared.run.report import write_evaluation
from shared.training.seeding import EVALUATION
from shared.training.statistics import mean_and_standard_error

PER_PASS = 16  # completions at a time
SHOWN = 8  # samples kept in the metrics


@dataclass(frozen=True)
class Options(EvaluationOptions):
    """Rewards, KL and completions of a policy and its reference on held-out prompts."""

    model: str = "pretrained"
    """pretrained: the committed policy. Or a run folder, a model folder (an adapter or a whole
    model), or a model of the Hub."""
    pretrained: bool = False
    """The committed policy, whatever --model says."""
    prompts: str = ""
    """As in training; empty: those that the model was trained on, held-out ones."""
    reward: tuple[str, ...] = ("pretrained",)
    """Proxy rewards to report, as in training."""
    count: Annotated[int, Between(2)] = 128
    """Held-out prompts at most."""
    completion: CountOrZero = 0
    """Tokens of a completion at most. 0: as in training."""
    seed: CountOrZero = 0
    """Seed of the completions."""


@torch.no_grad()
def on_policy(
    policy: Policy, environment: Environment, prompts: Prompts, seed: int = 0
) -> tuple[Completions, Tensor, Tensor]:
    """A completion of every prompt, and KL(policy || reference) of each in nats, estimated twice.

    [n] exact at every sampled prefix and [n] k1, as :meth:`TokenScores.sequence_kl`. The random
    numbers are a function of the seed alone.
    """
    completions = environment.complete(policy.lm, prompts, _numbers(environment, prompts, seed))
    tokens = score_tokens(policy, completions, environment.temperature, PER_PASS)
    return completions, *tokens.sequence_kl(completions.mask)


def _numbers(environment: Environment, prompts: Prompts, seed: int) -> Tensor:
    return uniforms(len(prompts.texts), environment.config.completion, seed, EVALUATION, 1)


@torch.no_grad()
def evaluate(
    policy: Policy, environment: Environment, prompts: Prompts, seed: int = 0
) -> dict[str, Any]:
    """Rewards of policy and reference, and the KL between them, on completions sampled here.

    KL(policy || reference) in nats per sequence as by :func:`on_policy`, each with its standard
    error over sequences. Both sample from the same random numbers.
    """
    completions, kl, k1 = on_policy(policy, environment, prompts, seed)
    with policy.as_reference() as lm:
        of_reference = environment.complete(lm, prompts, _numbers(environment, prompts, seed))
    temperature = environment.temperature
    metrics: dict[str, Any] = {"prompts": len(prompts.texts), "temperature": temperature}
    metrics["kl"], metrics["kl_standard_error"] = mean_and_standard_error(kl)
    metrics["kl_k1"], metrics["kl_k1_standard_error"] = mean_and_standard_error(k1)
    metrics["kl_per_token"] = (kl.sum() / completions.mask.sum()).item()
    for model, sampled in (("policy", completions), ("reference", of_reference)):
        metrics[model] = {
            "length": sampled.mask.sum(1).double().mean().item(),
            "eos_rate": sampled.ended.double().mean().item(),
        }
        rewards = environment.rewards_of(prompts, sampled)
        for name, column in zip(environment.columns, rewards.T, strict=True):
            mean, error = mean_and_standard_error(column)
            values = {"mean": mean, "standard_error": error, "sd": column.std().item()}
            metrics[model][name] = values
    shown = slice(0, SHOWN)
    texts = (x.at(shown).texts(environment.tokenizer) for x in (of_reference, completions))
    metrics["samples"] = [
        {"prompt": prompt, "reference": before, "policy": after}
        for prompt, before, after in zip(prompts.texts[shown], *texts, strict=True)
    ]
    return metrics


def headline(metrics: dict[str, Any]) -> str:
    """The metrics as lines for people."""
    lines = [
        f"{'KL(policy || reference)':<28}{metrics['kl']:.2f} +- {metrics['kl_standard_error']:.2f} "
        f"nats per sequence (k1: {metrics['kl_k1']:.2f} +- {metrics['kl_k1_standard_error']:.2f}), "
        f"{metrics['kl_per_token']:.3f} per token"
    ]
    policy, reference = metrics["policy"], metrics["reference"]
    for name in (key for key in policy if isinstance(policy[key], dict)):
        after, before = policy[name], reference[name]
        what = "gold reward" if name == "gold" else f"reward {name}"
        lines.append(
            f"{what:<27} {after['mean']:.3f} +- {after['standard_error']:.3f}, reference "
            f"{before['mean']:.3f} +- {before['standard_error']:.3f} (sd {before['sd']:.3f})"
        )
    lines.append(
        f"{'tokens, ended by itself':<28}{policy['length']:.1f}, {policy['eos_rate']:.0%}; "
        f"reference {reference['length']:.1f}, {reference['eos_rate']:.0%}"
    )
    return "\n".join(lines)


def samples(metrics: dict[str, Any], count: int = 4) -> str:
    """Completions before and after, as lines for people."""
    return "\n\n".join(
        f"{s['prompt']} ...\n  before: {' '.join(s['reference'].split())}\n"
        f"  after:  {' '.join(s['policy'].split())}"
        for s in metrics["samples"][:count]
    )


def main() -> None:
    options = cli.read_options(Options, "rlhf.evaluate")
    name = "pretrained" if options.pretrained else options.model
    policy, tokenizer, about = load_policy(name, Path(options.data))
    trained = {**LanguageConfig().__dict__, **about.get("config", {})}
    config = LanguageConfig(
        prompts=options.prompts or trained["prompts"],
        data=options.data,
        completion=options.completion or trained["completion"],
        gold=trained["gold"],
        max_prompt=trained["max_prompt"],
    )
    environment = Environment(
        config, tokenizer, policy.model.config, options.reward, trained.get("temperature", 1.0)
    )
    prompts = prompts_of(config, tokenizer, held_out=True, limit=options.count)
    metrics = evaluate(policy, environment, prompts, options.seed)
    print(f"{headline(metrics)}\n\n{samples(metrics)}")
    write_evaluation(options.json, name, metrics=metrics)


if __name__ == "__main__":
    cli.run(main, "rlhf.evaluate")
