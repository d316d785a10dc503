"""The gold reward: how positive a text is, by a lexicon and rules (Hutto and Gilbert 2014)."""

from functools import cache
from typing import Any

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # type: ignore[import-untyped]


@cache
def analyser() -> Any:
    """VADER with its lexicon, read once."""
    return SentimentIntensityAnalyzer()


def sentiment(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """VADER's compound score of each prompt with its completion, in [-1, 1].

    It is 0 for a text without a word of the lexicon.
    """
    return [
        float(analyser().polarity_scores(prompt + completion)["compound"])
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
