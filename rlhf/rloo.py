"""RLOO with a KL penalty by TRL: ``python -m rlhf.rloo [preset] [--beta 0.1 ...]``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.policies import load_model
from rlhf.policy import Policy
from rlhf.prompts import Prompts, prompts_of
from rlhf.rewards import call
from rlhf.rewards.environment import Environment
from rlhf.trl import ReferenceKL, TrainerConfig, adapter, train_policy, trainer_arguments
from shared import cli
from shared.config import Count, Positive
from shared.errors import UserError
from shared.language_models.trl import third_party
from shared.processes.launch import start
from shared.run.report import print_setup
from shared.run.run import Run
from shared.training.batches import stream


@dataclass(frozen=True)
class Config(TrainerConfig):
    """Train a language model by RLOO (Ahmadian et al. 2024) against a reward, held near the model
    it started from."""

    METHOD = "RLOO"

    batch_size: Count = 32
    """Completions of an optimiser step over all processes together."""
    micro_batch: Count = 16
    """Completions that a process computes at a time; their gradients add up to the step's."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW, falling linearly to zero."""
    warmup: int = 0
    """Steps over which the learning rate rises to its peak."""
    reward: tuple[str, ...] = ("pretrained",)
    """Rewards to maximise, as in rlhf.ppo; of several the mean."""
    normalise: bool = True
    """Shift and scale each reward to mean 0 and variance 1 over the reference's completions, as
    rlhf.ppo does; without it one beta does not mean the same in both."""
    reward_clip: Positive = 10.0
    """Rewards are cut to [-this, this]."""
    beta: Positive = 0.1
    """Coefficient of KL(policy || reference), reward per nat: k1, summed over a completion and
    subtracted from its reward."""
    num_generations: int = 4
    """Completions of each prompt; the mean reward of the others is a completion's baseline."""
    temperature: Positive = 1.0
    """Temperature of sampling, and of every log-probability and KL. There is no top-k, no top-p."""
    steps: Count = 40
    """Optimiser steps, each on new completions."""
    kl_prompts: Count = 32
    """Held-out prompts on which KL(policy || reference) is measured during training."""
    kl_every: Count = 10
    """Optimiser steps between these measurements."""

    def conflicts(self) -> list[str]:
        """Combinations that make no sense, each with what to change."""
        problems = super().conflicts()
        if self.num_generations < 2:
            problems.append(
                f"--num-generations {self.num_generations}: must be >= 2, or there is "
                f"no other completion to compare with"
            )
        elif self.batch_size % self.num_generations:
            problems.append(
                f"--num-generations {self.num_generations}: must divide --batch-size "
                f"{self.batch_size}"
            )
        if not self.reward:
            problems.append("--reward: name at least one")
        return problems


PRESETS = {
    "smoke": Config(
        lora=4,
        steps=2,
        batch_size=4,
        micro_batch=4,
        num_generations=2,
        completion=8,
        reward=("gold",),
        kl_prompts=4,
        kl_every=1,
        evaluation_prompts=4,
        checkpoint_every=1,
    ),
    "default": Config(),
    # The sentiment task of Rafailov et al. 2023, with the true reward. Needs the Hub.
    "paper": Config(
        model="runs/rlhf-sft-paper/model",
        lora=0,
        prompts="stanfordnlp/imdb",
        reward=("siebert/sentiment-roberta-large-english",),
        normalise=False,
        gold="siebert/sentiment-roberta-large-english",
        completion=48,
        steps=1000,
        batch_size=512,
        micro_batch=32,
        lr=1e-6,
        mixed_precision="bf16",
    ),
}


def reward_of(environment: Environment, config: Config) -> Callable[..., list[float]]:
    """The rewards as one function that TRL calls, which also logs each as it is."""
    names = environment.names

    def score(
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        log_metric: Callable[[str, float], None],
        **columns: Any,
    ) -> list[float]:
        rewards = call(environment.rewards, names, prompts, completions, completion_ids, columns)
        for name, mean in zip(names, rewards.mean(0).tolist(), strict=True):
            log_metric(f"rewards/{name}/mean", mean)
        scaled = environment.scale(rewards) if config.normalise else rewards
        scores: list[float] = scaled.mean(1).clamp(-config.reward_clip, config.reward_clip).tolist()
        return scores

    return score


def dataset_of(prompts: Prompts, config: Config, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The prompts of the whole run in the order of rlhf.ppo, as one pass.

    In several passes a resumed run of TRL's would begin with the first pass's order again.

    Raises:
        UserError: TRL would make other tokens of a text, such as a second beginning-of-text.
    """
    from datasets import Dataset

    if tokenizer(prompts.texts)["input_ids"] != prompts.tokens:
        raise UserError(
            "--prompts: with the chat template applied they have other tokens than this "
            "tokenizer makes of a text; TRL's RLOO cannot read them"
        )
    count = config.steps * config.batch_size // config.num_generations
    rows = prompts.at(stream(len(prompts.texts), config.seed, 0, count).tolist())
    return Dataset.from_dict({"prompt": rows.texts, **rows.columns})


def train(preset: str, config: Config) -> None:
    """Train from prompts to the run folder's summary."""
    from trl import RLOOConfig, RLOOTrainer  # seconds to import

    accelerator = start(config)
    model, tokenizer = load_model(config, accelerator)
    tokenizer.padding_side = "left"
    environment = Environment(config, tokenizer, model.config, config.reward, config.temperature)
    prompts = prompts_of(config, tokenizer, held_out=False)
    unseen = prompts_of(config, tokenizer, held_out=True, limit=config.kl_prompts)
    data = dataset_of(prompts, config, tokenizer)
    lora = adapter(config, model, "CAUSAL_LM")
    run = Run("rlhf-rloo", preset, config, accelerator)
    with third_party():
        trainer = RLOOTrainer(
            model=model,
            reward_funcs=[reward_of(environment, config)],
            args=RLOOConfig(
                **trainer_arguments(run, config),
                beta=config.beta,
                num_generations=config.num_generations,
                temperature=config.temperature,
                top_p=1.0,
                top_k=0,
                max_completion_length=config.completion,
                num_train_epochs=1,
                shuffle_dataset=False,
                disable_dropout=True,
            ),
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=lora,
        )
    policy = Policy(trainer.model, trainer.ref_model).to(accelerator.device)
    if config.normalise:
        environment.fit_scale(policy, prompts)
    print_setup(
        run,
        reward=f"{' '.join(config.reward)}; beta {config.beta:g}",
        data=f"{len(prompts.texts):,} prompts, completions of {config.completion} tokens",
        batch=f"{config.batch_size} completions = {config.batch_size // config.num_generations} "
        f"prompts x {config.num_generations}; {config.steps} steps",
        units="KL in nats per sequence; TRL's own metric `kl` is per token",
    )
    measure = ReferenceKL(run, policy, environment, unseen, config.kl_every)
    train_policy(run, config, trainer, measure, ("reward", "kl", "entropy"), "trl.png")


def main() -> None:
    train(*cli.read_config(PRESETS, "python -m rlhf.rloo"))


if __name__ == "__main__":
    cli.run(main, "rlhf.rloo")
