"""Reward functions by name, their values for completions, and ensembles of them.

A reward is called as TRL calls one for prompts that are text. It is computed on text, so a reward
model may have any tokenizer; a conversation is text here, with the chat template applied.
"""

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlhf.rewards.gold import sentiment
from rlhf.rewards.reward_model import load_reward_model
from shared.errors import UserError

PRETRAINED = Path(__file__).parents[1] / "pretrained" / "reward"
RewardFunction = Callable[..., Sequence[float | None]]


def load_reward(
    option: str, name: str, root: Path, device: torch.device | str = "cpu"
) -> RewardFunction:
    """A reward function by name.

    Args:
        option: the option that named it, for messages.
        name: ``gold``; ``pretrained``, the committed reward model; ``module:function``; a folder
            with a sequence classifier or an adapter of one; or a model of the Hub.
        root: folder of the data sets, where an adapter's base ``smollm2`` is.
        device: where a reward model computes.

    Raises:
        UserError: nothing there, not a function, not a trained sequence classifier, a tokenizer
            that does not fit it, or the Hub cannot be reached.
    """
    if name == "gold":
        return sentiment
    if ":" in name:
        return _function(option, name)
    source = str(PRETRAINED) if name == "pretrained" else name
    model = load_reward_model(f"{option} {name}", source, root)
    model.model.to(device)
    return model


def _function(option: str, name: str) -> RewardFunction:
    module, _, attribute = name.partition(":")
    try:
        function: RewardFunction = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # of whatever the module does when it is imported
        raise UserError(f"{option} {name}: cannot be imported ({error})") from error
    if not callable(function):
        raise UserError(f"{option} {name}: is not a function")
    return function


def call(
    rewards: Sequence[RewardFunction],
    names: Sequence[str],
    prompts: list[str],
    completions: list[str],
    completion_ids: list[list[int]],
    columns: dict[str, list[Any]],
) -> Tensor:
    """Every reward of every completion: [n, rewards] float64.

    Args:
        columns: the prompts' further columns, passed to the functions as TRL does.

    Raises:
        UserError: a function does not take these arguments, or does not return one finite number
            for each completion; the message names the function and the completion.
    """
    arguments = columns | {
        "prompts": prompts,
        "completions": completions,
        "completion_ids": completion_ids,
    }
    table = []
    for reward, name in zip(rewards, names, strict=True):
        try:
            inspect.signature(reward).bind(**arguments)
        except TypeError as error:
            raise UserError(
                f"reward {name}: does not take TRL's arguments ({error}); its last parameter must "
                f"be **kwargs, for those that it does not use"
            ) from error
        result: Any = reward(**arguments)
        if not isinstance(result, Iterable):
            raise UserError(
                f"reward {name}: returned {type(result).__name__}, not a list of numbers"
            )
        values = list(result)
        if len(values) != len(completions):
            raise UserError(
                f"reward {name}: returned {len(values)} values for {len(completions)} completions"
            )
        table.append([_number(name, row, value) for row, value in enumerate(values)])
    return torch.tensor(table, dtype=torch.float64).reshape(len(table), len(completions)).T


def _number(name: str, row: int, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"reward {name}: returned {value!r} for completion {row}, not a finite number"
        )
    return number


def aggregate(scores: Tensor, method: Literal["mean", "min", "uwo"], uwo: float) -> Tensor:
    """Rewards of an ensemble [n, k] -> [n] (Coste et al. 2024, section 3).

    ``min`` is their worst-case optimisation; ``uwo`` is mean - ``uwo`` x variance, the variance
    between the members divided by k.
    """
    match method:
        case "mean":
            return scores.mean(1)
        case "min":
            return scores.amin(1)
        case "uwo":
            return scores.mean(1) - uwo * scores.var(1, correction=0)


class Standardiser(nn.Module):
    """Shifts and scales each reward to mean 0 and variance 1 over the reference's completions.

    Ziegler et al. 2019, section 2.2. The identity until :meth:`fit` is called.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("std", torch.ones(count, dtype=torch.float64))

    def fit(self, scores: Tensor) -> None:
        """Take mean and standard deviation of scores [n, count]; a constant keeps its scale."""
        std = scores.std(0, correction=0)
        self.mean.copy_(scores.mean(0))
        self.std.copy_(torch.where(std > 1e-9 * scores.abs().amax(0), std, 1.0))

    def forward(self, scores: Tensor) -> Tensor:
        """[n, count] -> [n, count]."""
        return (scores - self.mean) / self.std
