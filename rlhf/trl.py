"""What the programs that train with TRL share: options, a trainer's arguments, an adapter."""

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from torch import nn

from rlhf.config import LanguageConfig
from shared.config import Count, CountOrZero, Positive
from shared.errors import UserError
from shared.language_models.trl import arguments
from shared.processes.distributed import world_size
from shared.run.run import Run


@dataclass(frozen=True)
class TrainerConfig(LanguageConfig):
    """What the programs that train with TRL take."""

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
        """Combinations that mean nothing, each with what to change."""
        if self.batch_size % self.micro_batch:
            return [f"--micro-batch {self.micro_batch}: must divide --batch-size {self.batch_size}"]
        return []


def common(run: Run, config: TrainerConfig) -> dict[str, Any]:
    """The arguments that every one of TRL's trainers gets alike.

    Raises:
        UserError: the batch does not divide over the processes.
    """
    alone = config.micro_batch * world_size()
    if config.batch_size % alone:
        raise UserError(
            f"--batch-size {config.batch_size}: must be a multiple of --micro-batch "
            f"{config.micro_batch} x {world_size()} processes"
        )
    return arguments(run) | {
        "per_device_train_batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.batch_size // alone,
        "learning_rate": config.lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": config.warmup,
        "weight_decay": 0.0,
        "max_grad_norm": config.max_gradient,
        "activation_checkpointing": config.activation_checkpointing,  # TRL's default is True
    }


def adapter(config: LanguageConfig, model: Any, task: str, **more: Any) -> LoraConfig | None:
    """The low-rank adapter (Hu et al. 2021) that a trainer puts on the model; none if all is
    trained.

    Raises:
        UserError: no layer has one of the names.
    """
    if not config.lora:
        return None
    layers = (name for name, part in model.named_modules() if isinstance(part, nn.Linear))
    if not {name.rpartition(".")[2] for name in layers} & set(config.lora_targets):
        raise UserError(
            f"--lora-targets {' '.join(config.lora_targets)}: no linear layer of the model is "
            f"named so"
        )
    return LoraConfig(
        r=config.lora,
        lora_alpha=2 * config.lora,
        lora_dropout=0.0,
        target_modules=list(config.lora_targets),
        task_type=task,
        **more,
    )


def first(rows: Any, limit: int) -> Any:
    """The first ``limit`` rows of a data set; 0: all."""
    return rows.select(range(min(limit, len(rows)))) if limit else rows
