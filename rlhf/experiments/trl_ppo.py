"""TRL's last PPO trainer on our task, to be compared with: ``python -m rlhf.experiments.trl_ppo``.

Needs TRL 1.12: ``make .venv-trl-1.12/ready`` fetches it, ``PYTHONPATH=.venv-trl-1.12`` shows it.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerState,
)
from typing_extensions import override

from rlhf.config import Config
from rlhf.policy import Policy, quiet_peft, with_adapter
from rlhf.prompts import Prompts, prompts_of
from rlhf.report import write_policy
from rlhf.rewards.environment import Environment
from rlhf.rollout import cut_at_end
from shared import cli
from shared.config import Positive
from shared.errors import UserError
from shared.language_models.causal import load_causal, locate
from shared.language_models.trl import third_party
from shared.processes.launch import start
from shared.run import interrupt
from shared.run.run import Run

VERSION = "1.12.0"
FOLDER = Path(".venv-trl-1.12")  # of this TRL alone; the rest is that of requirements.txt
TAKEN = """model lora lora_targets prompts max_prompt completion gold evaluation_prompts reward
    aggregate uwo normalise reward_clip missing_eos beta iterations batch_size epochs
    micro_batch lr value_lr temperature clip value_clip gamma lam seed out data""".split()


@dataclass(frozen=True)
class PeerConfig(Config):
    """Train by the PPO trainer of TRL 1.12, whose critic is a whole model, all of it trained."""

    METHOD = f"PPO of TRL {VERSION}"

    value_lr: Positive = 1e-4
    """Peak learning rate of the critic. TRL's own configuration has one rate for both."""

    def conflicts(self) -> list[str]:
        """Options that this trainer lacks."""
        changed = (f.name for f in fields(self) if getattr(self, f.name) != f.default)
        lines = [
            f"--{name.replace('_', '-')}: TRL's trainer has no such option here"
            for name in changed
            if name not in TAKEN
        ]
        if self.batch_size % self.micro_batch:
            lines.append(
                f"--micro-batch {self.micro_batch}: must divide --batch-size {self.batch_size}"
            )
        return lines


PRESETS = {"default": PeerConfig()}


def peer() -> Any:
    """The module of TRL's trainer.

    Raises:
        UserError: another TRL is on the path.
    """
    import trl  # seconds to import

    if trl.__version__ != VERSION:
        raise UserError(
            f"the PPO trainer is in TRL {VERSION}, found {trl.__version__}; `make "
            f"{FOLDER}/ready`, then PYTHONPATH={FOLDER}"
        )
    return importlib.import_module("trl.experimental.ppo.ppo_trainer")


def tokenizer_of(config: Config) -> PreTrainedTokenizerBase:
    """The policy's tokenizer as TRL needs it: padding on the left, by a token of its own.

    TRL 1.12 takes every such token for padding; the end-of-text would never be trained.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        locate(config.model, Path(config.data)), padding_side="left"
    )
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def common(config: Config) -> dict[str, Any]:
    """Arguments of TRL's online trainers: our sizes, float32, nothing written or evaluated."""
    return {
        "output_dir": config.out,
        "per_device_train_batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.batch_size // config.micro_batch,
        "learning_rate": config.lr,
        "temperature": config.temperature,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": config.seed,
    }


def make_trainer(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    reward: nn.Module,
    callback: TrainerCallback,
    value_lr: float = 0.0,
) -> Any:
    """TRL's trainer with our sizes; its critic starts as the policy's model with a head of zeros.

    Args:
        value_lr: rate of the critic; 0: TRL's optimiser, which knows one rate.
    """
    from datasets import Dataset

    module, source = peer(), locate(config.model, Path(config.data))
    model: Any = load_causal("--model", config.model, Path(config.data))[0]
    critic = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=1, dtype=model.dtype
    )
    nn.init.zeros_(critic.score.weight)
    if config.lora:
        model = with_adapter(model, config.lora, config.lora_targets)
    optimizer = None
    if value_lr:  # as in rlhf.policy, but for the epsilon: the critic's gradients are small
        of_policy = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(
            [
                {"params": of_policy, "lr": config.lr, "eps": 1e-5},
                {"params": critic.parameters(), "lr": value_lr},
            ]
        )
    args = module.PPOConfig(
        **common(config),
        total_episodes=config.iterations * config.batch_size,
        response_length=config.completion,
        stop_token="eos",
        num_ppo_epochs=config.epochs,
        local_rollout_forward_batch_size=config.micro_batch,
        kl_coef=config.beta,
        cliprange=config.clip,
        cliprange_value=config.value_clip,
        gamma=config.gamma,
        lam=config.lam,
        num_sample_generations=0,
    )
    with quiet_peft():
        return module.PPOTrainer(
            args=args,
            processing_class=tokenizer,
            model=model,
            ref_model=None,
            reward_model=reward,
            value_model=critic,
            callbacks=[callback],
            train_dataset=Dataset.from_dict({"input_ids": prompts.tokens}),
            optimizers=(optimizer, None),
        )


class Rewarded(nn.Module):
    """Stands where TRL wants a reward model: our rewards, which read text."""

    def __init__(
        self, config: Config, task: Environment, model_forward: Callable[..., Any]
    ) -> None:
        """``model_forward``: TRL's ``get_reward``, which goes on reading the critic."""
        super().__init__()
        self.config, self.task, self.model_forward = config, task, model_forward
        self.measured = list[dict[str, float]]()

    def get_reward(
        self, model: nn.Module, rows: Tensor, padding: int, context: int
    ) -> tuple[Any, Tensor, Any]:
        """In the place of TRL's: rows [n, context + time] of prompts and completions."""
        if model is not self:
            outputs: tuple[Any, Tensor, Any] = self.model_forward(model, rows, padding, context)
            return outputs
        attention = rows[:, :context] != padding
        kept = [row[mask].tolist() for row, mask in zip(rows[:, :context], attention, strict=True)]
        texts = self.task.tokenizer.batch_decode(kept)
        completions = cut_at_end(rows, attention, [*self.task.ends, padding], padding)
        scores, measured = self.task.score(self.config, Prompts(texts, kept, {}), completions)
        self.measured.append(measured)
        return None, scores, None


class Record(TrainerCallback):
    """A line of metrics.jsonl for every rollout; TRL's KL is k1."""

    def __init__(self, run: Run, rewarded: Rewarded) -> None:
        self.run, self.rewarded = run, rewarded

    @override
    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        measured, self.rewarded.measured = self.rewarded.measured, []
        means = {name: mean(metrics[name] for metrics in measured) for name in measured[0]}
        logs = dict(kwargs["logs"])
        logs["objective/kl_k1"] = logs.pop("objective/kl")
        self.run.step = state.global_step
        self.run.record(means | logs)
        rewards = ", ".join(f"{value:.3f}" for value in means.values())
        self.run.say(
            f"rollout {self.run.step}/{state.max_steps}, {self.run.elapsed():.0f} s: rewards "
            f"{rewards}, KL {logs['objective/kl_k1']:.2f} nats (k1)"
        )


def train(preset: str, config: PeerConfig) -> None:
    """The whole of training, from prompts to the run folder's summary."""
    accelerator = start(config, cpu=True)  # where TRL's trainer runs, too
    if accelerator.num_processes > 1:
        raise UserError(
            "rlhf.experiments.trl_ppo: TRL's trainer with an adapter runs on one process only"
        )
    module, tokenizer = peer(), tokenizer_of(config)
    shape = AutoConfig.from_pretrained(locate(config.model, Path(config.data)))
    task = Environment(config, tokenizer, shape, config.reward, config.temperature)
    rewarded = Rewarded(config, task, module.get_reward)
    prompts = prompts_of(config, tokenizer, held_out=False)
    run = Run("rlhf-trl-ppo", preset, config, accelerator)
    interrupt.uninstall()  # this trainer writes no checkpoint that it could go on from
    record = Record(run, rewarded)
    with third_party(), patch.object(module, "get_reward", rewarded.get_reward):
        trainer = make_trainer(config, tokenizer, prompts, rewarded, record, config.value_lr)
        policy = Policy(trainer.policy_model, trainer.ref_model)
        task.fit_scale(policy, prompts)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    summary = {"steps": run.step, "training_seconds": round(run.elapsed(), 1)}
    write_policy(run, config, policy, task, summary)


def main() -> None:
    train(*cli.read_config(PRESETS, "python -m rlhf.experiments.trl_ppo"))


if __name__ == "__main__":
    cli.run(main, "rlhf.experiments.trl_ppo")
