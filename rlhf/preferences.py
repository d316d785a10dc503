"""Preference pairs for reward model and DPO: ``python -m rlhf.preferences [--option value ...]``.

The reference completes openings of film reviews; of two completions of one prompt the chosen one
has the higher gold reward, by at least ``MARGIN``. A line of the file is a pair: prompt, chosen,
rejected, chosen_score, rejected_score; the text is prompt + chosen.
"""

import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from rlhf.gold import sentiment
from rlhf.openings import openings
from rlhf.prompts import is_held_out
from rlhf.rollout import end_tokens, sample
from shared import cli
from shared.config import Count, CountOrZero
from shared.errors import UserError, full_disk_is_a_user_error
from shared.language_model import LanguageModel, load_causal
from shared.seeding import generator

MARGIN = 0.3  # of the gold reward, which is in [-1, 1]: about a word of praise or blame
_COMPLETIONS, _PAIRS = 61, 62  # what a prompt's random numbers are for


@dataclass(frozen=True)
class Options:
    """Write the preference set: sample completions, score them, pair them."""

    prompts: Count = 1400
    """Openings to train on that are completed."""
    held_out: Count = 160
    """Held-out openings that are completed, for validation."""
    completions: Count = 4
    """Samples for each opening."""
    pairs: Count = 2
    """Pairs of an opening at most, drawn at random among those at least 0.3 apart."""
    tokens: Count = 24
    """Tokens of a completion at most."""
    seed: CountOrZero = 0
    """Seed of the samples and of the draw of pairs."""
    batch_size: Count = 20
    """Openings completed together; changes nothing but the speed."""
    model: str = "smollm2"
    """smollm2, a model folder, or a model of the Hub."""
    data: str = "data"
    """Folder of the data sets; smollm2 is fetched into it when missing."""
    out: str = "rlhf/data/preferences.jsonl"
    """File that receives the pairs, as a whole at the end or not at all."""


@dataclass(frozen=True)
class Pair:
    """Two completions of a prompt; scores are gold rewards of prompt + completion."""

    prompt: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float


def choose_openings(prompts: int, held_out: int) -> list[str]:
    """The first so many openings of each part, training ones first.

    Raises:
        UserError: there are not so many.
    """
    found = []
    for name, wanted, part in (("--prompts", prompts, False), ("--held-out", held_out, True)):
        there = [text for text in openings() if is_held_out(text) == part]
        if wanted > len(there):
            raise UserError(f"{name} {wanted}: there are {len(there)} such openings")
        found += there[:wanted]
    return found


def pairs_of(
    prompt: str,
    completions: Sequence[str],
    scores: Sequence[float],
    most: int,
    order: Sequence[int],
) -> list[Pair]:
    """At most so many pairs whose scores are at least ``MARGIN`` apart, in the given order.

    A completion that was cut within a character is left out.

    Args:
        order: a permutation of the pairs of ``completions``, as itertools counts them.
    """
    every = list(combinations(range(len(completions)), 2))
    found = []
    for a, b in (every[i] for i in order):
        high, low = (a, b) if scores[a] >= scores[b] else (b, a)
        whole = "\ufffd" not in completions[a] + completions[b]
        if whole and scores[high] - scores[low] >= MARGIN:
            found.append(
                Pair(prompt, completions[high], completions[low], scores[high], scores[low])
            )
    return found[:most]


def complete(options: Options, asked: Sequence[str]) -> list[list[str]]:
    """``options.completions`` samples of the model for each prompt, at temperature 1.

    A prompt's samples are a function of the prompt's place and the seed.
    """
    model, tokenizer = load_causal("--model", options.model, Path(options.data))
    lm = LanguageModel(model).eval()
    ends, padding = end_tokens(model.config, tokenizer), int(tokenizer.pad_token_id or 0)
    found: list[list[str]] = []
    for start in range(0, len(asked), options.batch_size):
        part = asked[start : start + options.batch_size]
        tokens = [tokenizer(text)["input_ids"] for text in part for _ in range(options.completions)]
        uniforms = torch.cat([
            torch.rand(options.completions, options.tokens,
                       generator=generator("cpu", options.seed, _COMPLETIONS, start + i))
            for i in range(len(part))
        ])  # fmt: skip
        texts = sample(lm, tokens, uniforms, ends, padding, temperature=1.0).texts(tokenizer)
        n = options.completions
        found += [texts[i : i + n] for i in range(0, len(texts), n)]
        print(f"{len(found)}/{len(asked)} openings completed", flush=True)
    return found


def write(path: Path, pairs: Sequence[Pair]) -> None:
    """One JSON object a line; the file is written to its end or stays as it was."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with full_disk_is_a_user_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(vars(pair)) + "\n" for pair in pairs)
            temporary.write_text("".join(lines))
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    options = cli.check(cli.parse(Options, sys.argv[1:], "python -m rlhf.preferences"))
    if options.completions < 2:
        raise UserError(f"--completions {options.completions}: a pair needs two")
    asked = choose_openings(options.prompts, options.held_out)
    pairs, scores = [], []
    for i, (prompt, texts) in enumerate(zip(asked, complete(options, asked), strict=True)):
        gold = sentiment([prompt] * len(texts), texts)
        scores += gold
        order = torch.randperm(
            len(texts) * (len(texts) - 1) // 2,
            generator=generator("cpu", options.seed, _PAIRS, i),
        )
        pairs += pairs_of(prompt, texts, gold, options.pairs, order.tolist())
    unseen = sum(is_held_out(pair.prompt) for pair in pairs)
    if not unseen or unseen == len(pairs):
        raise UserError("--prompts, --held-out: too few completions differ; ask for more")
    write(Path(options.out), pairs)
    print(
        f"gold reward of {len(scores)} completions: mean {statistics.mean(scores):.4f}, "
        f"standard deviation {statistics.stdev(scores):.4f}\n"
        f"{len(pairs) - unseen} pairs to train on, {unseen} held out: {options.out}"
    )


if __name__ == "__main__":
    cli.run(main, "rlhf.preferences")
