"""Reward functions by name, what they may return, and ensembles of them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.rewards import Standardiser, aggregate, call, load_reward
from rlhf.rewards.gold import sentiment
from shared.errors import UserError


def test_functions_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_reward.py").write_text(
        "number = 3\ndef length(completions, **_):\n    return [len(t) for t in completions]\n"
    )
    (tmp_path / "broken_reward.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_reward("--reward", "own_reward:length", tmp_path)(completions=["abc"]) == [3]
    assert load_reward("--reward", "gold", tmp_path) is sentiment
    for name, message in (
        ("own_reward:width", "cannot be imported .*no attribute 'width'"),
        ("no_reward:length", "cannot be imported .*No module named 'no_reward'"),
        ("broken_reward:length", "cannot be imported .*division by zero"),
        (":length", "cannot be imported"),
        ("own_reward:number", "is not a function"),
    ):
        with pytest.raises(UserError, match=f"^--reward {name}: {message}"):
            load_reward("--reward", name, tmp_path)


def rewards_of(*rewards: Any, columns: dict[str, list[Any]] | None = None) -> torch.Tensor:
    names = [f"number {i}" for i in range(len(rewards))]
    return call(rewards, names, ["a", "b"], ["c", "dd"], [[5], [6, 7]], columns or {})


def test_every_function_sees_text_tokens_and_columns() -> None:
    def first(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [len(p + c) for p, c in zip(prompts, completions, strict=True)]

    def second(completion_ids: list[list[int]], star: list[int], **_: Any) -> torch.Tensor:
        return torch.tensor([sum(ids) + s for ids, s in zip(completion_ids, star, strict=True)])

    result = rewards_of(first, second, columns={"star": [100, 200], "completions": ["longer", "x"]})
    assert result.dtype == torch.float64
    assert result.tolist() == [[2.0, 105.0], [3.0, 213.0]]
    assert call([sentiment] * 3, ["gold"] * 3, [], [], [], {}).shape == (0, 3)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([0.5, math.nan], "returned nan for completion 1, not a finite number"),
        ([-math.inf, 0.5], "returned -inf for completion 0, not a finite number"),
        ([0.5, None], "returned None for completion 1, not a finite number"),
        ([0.5, "good"], "returned 'good' for completion 1, not a finite number"),
        ([0.5], "returned 1 values for 2 completions"),
        ([0.5, 0.5, 0.5], "returned 3 values for 2 completions"),
        (None, "returned NoneType, not a list of numbers"),
        (0.5, "returned float, not a list of numbers"),
    ],
)
def test_what_a_function_must_not_return(returned: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^reward number 1: {message}"):
        rewards_of(lambda **_: [0, 0], lambda **_: returned)


def test_a_function_that_takes_other_arguments_is_named() -> None:
    with pytest.raises(UserError, match=r"reward number 0: does not take TRL's arguments .*\*\*kw"):
        rewards_of(
            lambda prompts, completions: [0.0 for _ in zip(prompts, completions, strict=True)]
        )


def test_ensembles() -> None:
    """By hand: means 2 and 0, variances ((-1)^2 + 1^2) / 2 = 1 and 9."""
    result = torch.tensor([[1.0, 3.0], [3.0, -3.0]], dtype=torch.float64)
    assert aggregate(result, "mean", 0.5).tolist() == [2.0, 0.0]
    assert aggregate(result, "min", 0.5).tolist() == [1.0, -3.0]
    assert aggregate(result, "uwo", 0.5).tolist() == [1.5, -4.5]
    one = result[:, :1]  # a single reward is its own mean and worst case
    assert all(torch.equal(aggregate(one, how, 0.5), one[:, 0]) for how in ("mean", "min", "uwo"))


def test_rewards_are_standardised_on_what_was_fitted() -> None:
    reference = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reference = reference * torch.tensor([3.0, 0.1, 0.0]) + torch.tensor([5.0, -2.0, 0.3])
    scale = Standardiser(3)
    assert torch.equal(scale(reference), reference)
    scale.fit(reference)
    result = scale(reference)
    torch.testing.assert_close(result.mean(0), torch.zeros(3, dtype=torch.float64))
    expected = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)  # the constant is not scaled up
    torch.testing.assert_close(result.square().mean(0), expected)
    other = reference + 6.0
    torch.testing.assert_close(
        (scale(other) - result)[0, :2], 6.0 / reference[:, :2].std(0, correction=0)
    )
    assert float(scale(other)[0, 2]) == pytest.approx(6.0)
    restored = Standardiser(3)
    restored.load_state_dict(scale.state_dict())
    assert torch.equal(restored(other), scale(other))
