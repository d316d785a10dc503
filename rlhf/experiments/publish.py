"""Adapters for the repository: weights in bfloat16, measured again as they are committed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copyfile, rmtree
from typing import Any

from safetensors.torch import load_file, save_file

from rlhf import config as ppo
from rlhf import policies, report, reward, rewards
from rlhf.evaluate import evaluate
from rlhf.prompts import prompts_of, read_preferences
from rlhf.rewards.environment import Environment
from rlhf.trl import first
from shared.errors import UserError
from shared.run.checkpoint import write_folder
from shared.run.folder import write_json

LARGEST = 5 * 2**20  # bytes of a committed folder
WEIGHTS = "adapter_model.safetensors"
Measured = tuple[dict[str, Any], str]  # metrics, card


def publish_reward(run: Path) -> None:
    """``rlhf/pretrained/reward`` from a run's adapter.

    Without a tokenizer: loading takes that of the model that the adapter is for.

    Raises:
        UserError: no adapter, or one that is too large for the repository.
    """
    about = _about(run)
    _publish(run, rewards.PRETRAINED, about, lambda folder: _measure_reward(folder, about))


def publish_policy(run: Path) -> None:
    """``rlhf/pretrained/policy`` likewise; it is measured by the committed reward model."""
    about = _about(run)
    about["config"]["reward"] = ["pretrained"]
    _publish(run, policies.PRETRAINED, about, lambda folder: _measure_policy(folder, about))


def _about(run: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((run / "model" / "training.json").read_text())
    return about


def _publish(
    run: Path, path: Path, about: Mapping[str, Any], measure: Callable[[Path], Measured]
) -> None:
    """Round a run's adapter, measure it as it will be read, then write ``path`` in one go."""
    model, staged = run / "model", run / ".tmp-published"
    if not (model / WEIGHTS).is_file():
        raise UserError(f"{model}: holds no adapter; a whole model is too large to be committed")

    def write(folder: Path) -> None:
        copyfile(model / "adapter_config.json", folder / "adapter_config.json")
        half = {name: x.bfloat16() for name, x in load_file(model / WEIGHTS).items()}
        save_file(half, folder / WEIGHTS, {"format": "pt"})
        write_json(folder / "training.json", about)

    def with_card(folder: Path) -> None:
        write(folder)
        write_json(folder / "metrics.json", metrics)
        (folder / "README.md").write_text(card)

    try:
        write_folder(staged, write)
        size = sum(file.stat().st_size for file in staged.iterdir())
        if size > LARGEST:
            raise UserError(
                f"{model}: its adapter has {size / 2**20:.1f} MiB in bfloat16, more than the "
                f"{LARGEST / 2**20:g} for the repository; a smaller --lora makes a smaller one"
            )
        metrics, card = measure(staged)
        write_folder(path, with_card)
    finally:
        rmtree(staged, ignore_errors=True)


def _options(about: Mapping[str, Any]) -> dict[str, Any]:
    """The stored options, with the tuples that JSON does not have."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in about["config"].items()}


def _measure_reward(folder: Path, about: Mapping[str, Any]) -> Measured:
    config = reward.Config(**_options(about))
    pairs = read_preferences("--preferences", config.preferences, held_out=True)
    metrics = reward.evaluate(folder, Path(config.data), first(pairs, config.limit))
    return metrics, reward.card(about["preset"], config, metrics)


def _measure_policy(folder: Path, about: Mapping[str, Any]) -> Measured:
    config = ppo.Config(**_options(about))
    policy, tokenizer, _ = policies.load_policy(str(folder), Path(config.data))
    task = Environment(config, tokenizer, policy.model.config, config.reward, config.temperature)
    prompts = prompts_of(config, tokenizer, held_out=True, limit=config.evaluation_prompts)
    metrics = evaluate(policy, task, prompts)
    return metrics, report.card(about["preset"], config, metrics)
