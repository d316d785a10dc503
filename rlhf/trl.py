"""Training with TRL: options, arguments of a trainer, and a policy's KL while it is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from transformers import TrainerCallback, TrainerState
from typing_extensions import override

from rlhf import pictures
from rlhf.config import LanguageConfig
from rlhf.evaluate import on_policy
from rlhf.policy import Policy, lora
from rlhf.prompts import Prompts
from rlhf.report import write_outputs
from rlhf.rewards.environment import Environment
from shared.config import Count, CountOrZero, Positive
from shared.errors import UserError
from shared.language_models.trl import arguments, train_with
from shared.processes.distributed import world_size
from shared.run.folder import read_metrics
from shared.run.run import Run


@dataclass(frozen=True)
class TrainerConfig(LanguageConfig):
    """Options of every program that trains with TRL."""

    batch_size: Count = 16
    """Examples of an optimiser step over all processes together."""
    micro_batch: Count = 8
    """Examples that a process computes at a time; their gradients add up to the step's."""
    lr: Positive = 1e-4
    """Peak learning rate of AdamW, falling linearly to zero (an adapter takes more than the 1e-6
    to 1e-5 of full training)."""
    warmup: CountOrZero = 10
    """Steps over which the learning rate rises to its peak."""
    max_gradient: Positive = 1.0
    """Largest gradient norm; longer gradients are scaled down to it."""
    activation_checkpointing: bool = False
    """Keep no activations inside the layers; compute them again in the backward pass."""
    checkpoint_every: Count = 20
    """Optimiser steps between checkpoints; one is also written on SIGTERM, Ctrl-C and at the
    end."""

    def conflicts(self) -> list[str]:
        """Combinations that make no sense, each with what to change."""
        if self.batch_size % self.micro_batch:
            return [f"--micro-batch {self.micro_batch}: must divide --batch-size {self.batch_size}"]
        return []


def trainer_arguments(run: Run, config: TrainerConfig) -> dict[str, Any]:
    """The arguments that all of TRL's trainers get alike.

    Raises:
        UserError: the batch does not divide over the processes.
    """
    together = config.micro_batch * world_size()
    if config.batch_size % together:
        raise UserError(
            f"--batch-size {config.batch_size}: must be a multiple of --micro-batch "
            f"{config.micro_batch} x {world_size()} processes"
        )
    return arguments(run) | {
        "per_device_train_batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.batch_size // together,
        "learning_rate": config.lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": config.warmup,
        "weight_decay": 0.0,
        "max_grad_norm": config.max_gradient,
        "activation_checkpointing": config.activation_checkpointing,  # TRL's default is True
    }


def adapter(config: LanguageConfig, model: Any, task: str, **more: Any) -> LoraConfig | None:
    """The adapter that a trainer puts on the model; None if all weights are trained.

    Raises:
        UserError: no linear layer of the model has one of the names.
    """
    return lora(model, config.lora, config.lora_targets, task, **more) if config.lora else None


def first(rows: Any, limit: int) -> Any:
    """The first ``limit`` rows of a data set; 0: all."""
    return rows.select(range(min(limit, len(rows)))) if limit else rows


def train_policy(
    run: Run,
    config: TrainerConfig,
    trainer: Any,
    callback: "ReferenceKL",
    panels: Sequence[str],
    picture: str,
) -> None:
    """Train, measured by ``callback``; then evaluate the policy and write the run's outputs.

    Args:
        panels: the trainer's metrics that ``pictures/<picture>`` shows.
    """
    trainer.add_callback(callback)
    if train_with(trainer, run, config.checkpoint_every):
        write_outputs(run, config, callback.policy, callback.environment)
        pictures.curves(read_metrics(run.folder), panels, run.folder / "pictures" / picture)


class ReferenceKL(TrainerCallback):
    """Measures a policy on its own completions of fixed prompts, from fixed random numbers.

    TRL's DPOTrainer reports no KL at all; its RLOOTrainer one per token, on the training prompts.
    Here, before the first step, every ``every`` steps, and after the last: ``objective/kl``,
    KL(policy || reference) in nats per sequence, exact at every sampled prefix (Amini et al. 2025);
    ``objective/kl_k1``; the means of all rewards; lengths.
    """

    def __init__(
        self, run: Run, policy: Policy, environment: Environment, prompts: Prompts, every: int
    ) -> None:
        self.run, self.policy, self.environment = run, policy, environment
        self.prompts, self.every = prompts, every

    @override
    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.measure()

    @override
    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.run.step = state.global_step
            self.measure()

    def measure(self) -> None:
        """Sample, score, and write a line of metrics.jsonl."""
        environment = self.environment
        completions, kl, k1 = on_policy(self.policy, environment, self.prompts)
        rewards = environment.rewards_of(self.prompts, completions)
        count = completions.mask.sum(1).double()
        metrics = {
            "objective/kl": kl.double().mean().item(),
            "objective/kl_k1": k1.double().mean().item(),
            "objective/kl_per_token": (kl.sum() / count.sum()).item(),
            "completions/mean_length": count.mean().item(),
            "completions/eos_rate": completions.ended.double().mean().item(),
        } | environment.means(rewards)
        self.run.record(metrics)
        gold = f", gold reward {metrics['rewards/gold/mean']:.3f}" if environment.gold else ""
        self.run.say(
            f"step {self.run.step}, {self.run.elapsed():.0f} s: KL(policy || reference) "
            f"{metrics['objective/kl']:.2f} nats{gold}"
        )
