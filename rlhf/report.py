"""The lines at a run's start and after a rollout, and the files at its end."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rlhf import pictures
from rlhf.config import Config, LanguageConfig
from rlhf.evaluate import evaluate, headline, samples
from rlhf.policies import save_model
from rlhf.policy import Policy
from rlhf.prompts import Prompts, prompts_of
from rlhf.rewards.environment import Environment
from rlhf.rollout import Completions, TokenScores
from shared.run.folder import read_metrics
from shared.run.report import finish_run, model_card, pictures_folder, print_setup, shares
from shared.run.run import Run


def print_run(run: Run, config: Config, policy: Policy, prompts: Prompts) -> None:
    """Print the batch arithmetic, the sizes and the units."""
    total = sum(p.numel() for p in policy.parameters())
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    target = f", steered to {config.kl_target:g} nats" if config.kl_target else ""
    print_setup(
        run,
        model=f"{config.model}, {total:,} parameters, {trained:,} of them trained; "
        f"critic {config.critic}",
        reward=f"{' '.join(config.reward)}; beta {config.beta:g} by {config.kl}{target}",
        data=f"{len(prompts.texts):,} prompts, completions of {config.completion} tokens",
        batch=f"{shares(config.batch_size)} completions; "
        f"{config.epochs} passes of {config.minibatches} step(s); {config.iterations} rollouts",
        units="KL in nats per sequence, unless said",
    )


def rollout_metrics(
    tokens: TokenScores, completions: Completions, scores: Tensor, target: Tensor, beta: float
) -> dict[str, float]:
    """Means over a rollout: KLs, entropy, lengths, and how well the values explain the targets.

    Names as TRL's, KLs in nats.

    Args:
        scores: [n] what is maximised, without the penalty.
        target: [n, time] targets of the values.
    """
    mask = completions.mask
    kl, k1 = tokens.sequence_kl(mask)
    count = mask.sum()
    error, target = (target - tokens.value)[mask], target[mask]
    return {
        "objective/kl": kl.mean().item(),
        "objective/kl_k1": k1.mean().item(),
        "objective/kl_per_token": (kl.sum() / count).item(),
        "objective/entropy_per_token": (tokens.entropy[mask].sum() / count).item(),
        "objective/scores": scores.mean().item(),
        "objective/rlhf_reward": (scores.mean() - beta * kl.mean()).item(),
        "kl_coef": beta,
        "completions/mean_length": (count / len(mask)).item(),
        "completions/eos_rate": completions.ended.double().mean().item(),
        "val/explained_variance": 1 - (error.var() / target.var().clamp(min=1e-8)).item(),
    }


def log_rollout(run: Run, config: Config, metrics: dict[str, float]) -> None:
    """Write a line of metrics.jsonl; print a line for people after every twentieth of the run."""
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


def write_outputs(
    run: Run, config: LanguageConfig, policy: Policy, environment: Environment
) -> None:
    """Evaluate on held-out prompts and write model/, pictures/ and summary.json of the run."""
    seconds = round(run.elapsed(), 1)
    run.say("evaluating ...")
    records = [r for r in read_metrics(run.folder) if "objective/kl" in r]
    with pictures_folder(run) as folder:
        pictures.training(records, environment.names, folder / "training.png")
    summary = {"steps": run.step, "training_seconds": seconds, "training": records[-1]}
    write_policy(run, config, policy, environment, summary)


def training_summary(run: Run, panels: Sequence[str]) -> dict[str, Any]:
    """Draw a trainer's metrics as pictures/training.png; what summary.json says of the training."""
    seconds, records = round(run.elapsed(), 1), read_metrics(run.folder)
    with pictures_folder(run) as folder:
        pictures.curves(records, panels, folder / "training.png")
    return {"steps": run.step, "training_seconds": seconds, "training": records[-1]}


def write_policy(
    run: Run,
    config: LanguageConfig,
    policy: Policy,
    environment: Environment,
    summary: dict[str, Any],
) -> None:
    """Evaluate on held-out prompts and write model/ and summary.json."""
    tokenizer = environment.tokenizer
    prompts = prompts_of(config, tokenizer, held_out=True, limit=config.evaluation_prompts)
    metrics = evaluate(policy, environment, prompts)
    text = card(run.preset, config, metrics)
    folder = run.folder / "model"
    save_model(folder, run.preset, config, policy.model, tokenizer, metrics, text)
    finish_run(
        run,
        summary | {"evaluation": metrics},
        f"\n{headline(metrics)}\n\n{samples(metrics)}\n\nin {run.elapsed():.0f} s; pictures in "
        f"{run.folder / 'pictures'}, model in {folder}",
    )


def card(preset: str, config: LanguageConfig, metrics: dict[str, Any]) -> str:
    """The model card: how it was trained, what it reached, how to load it."""
    names = """model lora prompts completion reward beta kl kl_target iterations batch_size epochs
        lr seed""".split()
    return model_card(
        f"{config.model} trained by {config.METHOD}, preset `{preset}` of KL Zoo",
        ["rlhf", "kl-zoo"],
        library="peft",
        result=f"On {metrics['prompts']} held-out prompts, one completion each:\n\n"
        f"```\n{headline(metrics)}\n```",
        options={name: getattr(config, name) for name in names if hasattr(config, name)},
        code="from pathlib import Path\nfrom rlhf.policies import load_policy\n\n"
        'policy, tokenizer, about = load_policy("path/to/this/folder", Path("data"))',
        note="Limits: it was taught to please one small reward on openings of film reviews, "
        "nothing else; it says\nuntrue things in a pleasant tone.",
    )
