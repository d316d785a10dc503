"""Options and presets of KL-penalised PPO on language models. One dial: ``--beta``."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from shared.config import Between, Count, CountOrZero, NonNegative, Positive, RunConfig

Share = Annotated[float, Between(0, 1)]
WRONG_IN_REWARD = {
    "k2": "it is biased, and its expected gradient is not that of KL(policy || reference)",
    "k3": "its expected gradient is that of KL(policy || reference) - KL(reference || policy), "
    "which nearly vanishes and lets the policy run away",
}


@dataclass(frozen=True)
class LanguageConfig(RunConfig):
    """Options of every training program of rlhf/: the model, its adapter and the prompts."""

    METHOD: ClassVar[str]  # in the title of a card

    model: str = "smollm2"
    """smollm2: SmolLM2-135M-Instruct, without a Hub. Or a model folder, or a model of the Hub."""
    lora: CountOrZero = 16
    """Rank of the trained adapter (Hu et al. 2021). 0: all weights are trained, and a frozen copy
    is kept as the reference."""
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Names of the linear layers that get an adapter."""
    prompts: str = "movies"
    """movies: openings of film reviews, written for this zoo. Or a file (.jsonl, .json, .csv,
    .parquet) or a data set of the Hub with a column `prompt`, text or conversational, or else a
    column `text`, of which the first 2 to 8 tokens are a prompt. A fifth, by a hash of the prompt,
    is held out."""
    max_prompt: Count = 64
    """Longest prompt, in tokens; longer ones are refused."""
    completion: Count = 24
    """Tokens of a completion at most."""
    gold: str = "gold"
    """Reward that is reported and never trained on. gold: sentiment by VADER. Or as --reward.
    Empty: none."""
    evaluation_prompts: Annotated[int, Between(2)] = 128
    """Held-out prompts of the final evaluation."""


@dataclass(frozen=True)
class Config(LanguageConfig):
    """Train a language model by PPO against a reward, held near the model it started from."""

    METHOD = "PPO"

    reward: tuple[str, ...] = ("pretrained",)
    """Rewards to maximise. pretrained: the committed reward model. gold: VADER itself. Or folders
    or Hub names of sequence classifiers, or Python functions `module:function`, called as TRL does
    for text: f(prompts, completions, **columns) -> one number each; a conversation is passed as
    text."""
    aggregate: Literal["mean", "min", "uwo"] = "mean"
    """Several rewards as one. min: the worst (Coste et al. 2024, WCO). uwo: mean - --uwo x
    variance."""
    uwo: NonNegative = 0.1
    """Weight of the variance between the rewards in `uwo`."""
    normalise: bool = True
    """Shift and scale each reward to mean 0 and variance 1 over the reference's completions
    (Ziegler et al. 2019, section 2.2)."""
    reward_clip: Positive = 10.0
    """Rewards are cut to [-this, this]."""
    missing_eos: NonNegative = 0.0
    """Subtracted from the reward of a completion without an end-of-text."""

    beta: NonNegative = 0.1
    """Coefficient of KL(policy || reference), reward per nat; with --kl-target the first one."""
    kl: Literal["k1", "k2", "k3", "rb"] = "k1"
    """Estimate of the penalty. k1: log-ratios in the reward. rb: the exact KL of every state (Amini
    et al. 2025); a token's own state counts in the loss, the later ones in its reward. k2 and k3
    in the reward have a wrong gradient and are refused."""
    kl_target: NonNegative = 0.0
    """Nats per sequence that an adaptive coefficient steers to (Ziegler et al. 2019: 6). 0: the
    coefficient is fixed."""
    kl_horizon: Positive = 10_000.0
    """Sequences over which the adaptive coefficient moves (Ziegler et al. 2019: 10,000)."""
    max_kl: NonNegative = 0.0
    """End the run once KL(policy || reference) is above this, in nats per sequence. 0: never."""

    iterations: Count = 40
    """Rollouts."""
    batch_size: Count = 32
    """Completions of a rollout over all processes together."""
    minibatches: Count = 1
    """Optimiser steps in a pass over the rollout."""
    epochs: Count = 2
    """Passes over a rollout (Ziegler et al. 2019: 4)."""
    micro_batch: Count = 16
    """Sequences that a process computes at a time; their gradients add up to the step's."""
    lr: Positive = 1e-3
    """Peak learning rate of Adam, falling linearly to zero (an adapter takes more than the 1e-5 of
    full training)."""
    value_lr: Positive = 2e-3
    """Peak learning rate of the value head and of a separate critic."""
    temperature: Positive = 1.0
    """Temperature of sampling, and of every log-probability and KL. There is no top-k and no top-p:
    with them the KL would not be that of the policy that acts."""
    clip: Positive = 0.2
    """Range of the ratio new / old around 1 (Schulman et al. 2017)."""
    value_clip: Positive = 0.2
    """How far a value may move in the loss from what it was at the rollout."""
    gamma: Share = 1.0
    """Discount per token (Ziegler et al. 2019: 1)."""
    lam: Share = 0.95
    """Trace of the generalised advantage estimate (Ziegler et al. 2019: 0.95)."""
    whiten: bool = True
    """Advantages with mean 0 and variance 1 over all tokens of the rollout."""
    critic: Literal["shared", "separate"] = "shared"
    """Value head on the policy's trunk, which it reads and does not train, or on a second trunk."""
    early_stop: NonNegative = 0.0
    """Stop the passes over a rollout once KL(old || new) is above this, in nats per token. 0:
    never."""
    max_gradient: Positive = 1.0
    """Largest gradient norm, of policy and value each; longer gradients are scaled down to it."""
    activation_checkpointing: bool = False
    """Keep no activations inside the layers; compute them again in the backward pass."""

    checkpoint_every: Count = 10
    """Rollouts between checkpoints; one is also written on SIGTERM, Ctrl-C and at the end."""

    def conflicts(self) -> list[str]:
        """Combinations that make no sense, each with what to change."""
        problems = []
        if self.kl in WRONG_IN_REWARD:
            problems.append(
                f"--kl {self.kl}: refused in the reward, {WRONG_IN_REWARD[self.kl]}; take k1 or rb"
            )
        if self.batch_size % self.minibatches:
            problems.append(
                f"--minibatches {self.minibatches}: must divide --batch-size {self.batch_size}"
            )
        if not self.reward:
            problems.append("--reward: name at least one")
        if self.kl_target and not self.beta:
            problems.append("--beta 0.0: an adaptive coefficient needs --beta > 0 to start from")
        return problems


# Schulman et al. 2017 and Ziegler et al. 2019 with the sizes of the sentiment task there and in
# Rafailov et al. 2023: gpt2-large, IMDb, a RoBERTa classifier as the reward. Needs the Hub.
_PAPER = Config(
    model="runs/rlhf-sft-paper/model",
    lora=0,
    prompts="stanfordnlp/imdb",
    reward=("siebert/sentiment-roberta-large-english",),
    gold="siebert/sentiment-roberta-large-english",
    normalise=False,
    beta=0.1,
    iterations=1000,
    batch_size=1024,
    minibatches=4,
    epochs=4,
    micro_batch=32,
    lr=1e-5,
    value_lr=1e-4,
    completion=48,
    mixed_precision="bf16",
)
PRESETS = {
    "smoke": Config(
        lora=4,
        iterations=2,
        batch_size=4,
        micro_batch=2,
        completion=8,
        reward=("gold",),
        evaluation_prompts=4,
        checkpoint_every=1,
    ),
    "default": Config(),
    "paper": _PAPER,
}
