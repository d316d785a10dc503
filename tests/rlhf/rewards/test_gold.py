"""The gold reward against scores that VADER's authors publish, and what it is computed on."""

import pytest

from rlhf.rewards.gold import analyser, sentiment


@pytest.mark.parametrize(
    ("text", "compound"),
    [  # from the README of VADER
        ("VADER is smart, handsome, and funny.", 0.8316),
        ("VADER is not smart, handsome, nor funny.", -0.7424),
        ("The book was good.", 0.4404),
        ("Today SUX!", -0.5461),
    ],
)
def test_published_scores(text: str, compound: float) -> None:
    assert sentiment([""], [text]) == [compound]
    assert sentiment([text], [""]) == [compound]


def test_the_prompt_counts_as_it_stands_before_the_completion() -> None:
    joined = sentiment(["The film was not"], [" good."], completion_ids=[[1]], other=["column"])
    assert joined == sentiment([""], ["The film was not good."])
    assert joined[0] < 0 < sentiment([""], [" good."])[0]


def test_the_lexicon_is_read_once_and_without_warnings() -> None:
    analyser.cache_clear()
    sentiment(["a", "b"], ["", ""])
    assert analyser.cache_info().misses == 1
