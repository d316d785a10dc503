"""Preference pairs for reward model and DPO: ``python -m rlhf.preferences [--option value ...]``.

The reference completes prompts; of two completions of one prompt the chosen one has the higher
reward, by at least ``--margin``. A line of the file is a pair: prompt, chosen,
rejected, chosen_score, rejected_score; the text is prompt + chosen.
"""

import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.prompts import Prompts, is_held_out, read_prompts
from rlhf.rewards import call, load_reward
from rlhf.rollout import Completions, end_tokens, sample
from shared import cli
from shared.config import Count, CountOrZero, NonNegative
from shared.errors import UserError, full_disk_is_a_user_error
from shared.language_models.causal import LanguageModel, load_causal
from shared.training.seeding import PREFERENCE_COMPLETIONS, PREFERENCE_PAIRS, generator


@dataclass(frozen=True)
class Options:
    """Write the preference set: sample completions, score them, pair them."""

    prompts: str = "movies"
    """As in rlhf.ppo."""
    count: Count = 1400
    """Prompts to train on that are completed."""
    held_out: Count = 160
    """Held-out prompts that are completed, for validation."""
    max_prompt: Count = 64
    """Longest prompt, in tokens; longer ones are refused."""
    reward: str = "gold"
    """What decides which completion is better, as in rlhf.ppo."""
    completions: Count = 4
    """Samples for each prompt (Rafailov et al. 2023: 4)."""
    pairs: Count = 2
    """Pairs of a prompt at most, drawn at random among those far enough apart (Rafailov et al.
    2023: 6)."""
    margin: NonNegative = 0.3
    """Least difference of the rewards of a pair. Of the gold reward, which is in [-1, 1], 0.3 is
    about a word of praise or blame."""
    tokens: Count = 24
    """Tokens of a completion at most."""
    seed: CountOrZero = 0
    """Seed of the samples and of the draw of pairs."""
    batch_size: Count = 20
    """Prompts completed together; changes nothing but the speed."""
    model: str = "smollm2"
    """smollm2, a model folder, or a model of the Hub."""
    data: str = "data"
    """Folder of the data sets; smollm2 is fetched into it when missing."""
    out: str = "rlhf/data/preferences.jsonl"
    """File that receives the pairs, as a whole at the end or not at all."""


@dataclass(frozen=True)
class Pair:
    """Two completions of a prompt and their rewards."""

    prompt: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float


def choose_prompts(options: Options, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The first so many prompts of each part, training ones first.

    Raises:
        UserError: there are not so many.
    """
    texts, tokens = [], []
    for name, wanted, part in (
        ("--count", options.count, False),
        ("--held-out", options.held_out, True),
    ):
        there = read_prompts(
            "--prompts", options.prompts, tokenizer, options.max_prompt, held_out=part
        )
        if wanted > len(there.texts):
            raise UserError(f"{name} {wanted}: there are {len(there.texts)} such prompts")
        texts += there.texts[:wanted]
        tokens += there.tokens[:wanted]
    return Prompts(texts, tokens, {})


def pairs_of(
    prompt: str,
    completions: Sequence[str],
    scores: Sequence[float],
    most: int,
    margin: float,
    order: Sequence[int],
) -> list[Pair]:
    """At most so many pairs whose scores are at least ``margin`` apart, in the given order.

    A completion that was cut within a character is left out.

    Args:
        order: a permutation of the pairs of ``completions``, as itertools counts them.
    """
    every = list(combinations(range(len(completions)), 2))
    found = []
    for a, b in (every[i] for i in order):
        high, low = (a, b) if scores[a] >= scores[b] else (b, a)
        whole = "\ufffd" not in completions[a] + completions[b]
        if whole and scores[high] - scores[low] >= margin:
            found.append(
                Pair(prompt, completions[high], completions[low], scores[high], scores[low])
            )
    return found[:most]


def complete(
    options: Options, lm: LanguageModel, asked: Prompts, ends: Sequence[int], padding: int
) -> Iterator[tuple[int, Completions]]:
    """``options.completions`` samples of each prompt at temperature 1, some prompts at a time.

    A prompt's samples are a function of its place and the seed; yields the first one's place.
    """
    n = options.completions
    for start in range(0, len(asked.texts), options.batch_size):
        part = range(start, min(start + options.batch_size, len(asked.texts)))
        uniforms = torch.cat(
            [
                torch.rand(
                    n,
                    options.tokens,
                    generator=generator("cpu", options.seed, PREFERENCE_COMPLETIONS, i),
                )
                for i in part
            ]
        )
        tokens = [asked.tokens[i] for i in part for _ in range(n)]
        yield start, sample(lm, tokens, uniforms, ends, padding, temperature=1.0)
        print(f"{part.stop}/{len(asked.texts)} prompts completed", flush=True)


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
    root = Path(options.data)
    model, tokenizer = load_causal("--model", options.model, root)
    asked = choose_prompts(options, tokenizer)
    reward = load_reward("--reward", options.reward, root)
    ends, padding = end_tokens(model.config, tokenizer), int(tokenizer.pad_token_id or 0)
    pairs, scores, n = [], [], options.completions
    lm = LanguageModel(model).eval()
    for start, completions in complete(options, lm, asked, ends, padding):
        texts, tokens = completions.texts(tokenizer), completions.token_lists()
        for i in range(len(texts) // n):
            prompt, own = asked.texts[start + i], slice(i * n, i * n + n)
            judged = call(
                [reward], [f"--reward {options.reward}"], [prompt] * n, texts[own], tokens[own], {}
            )
            rng = generator("cpu", options.seed, PREFERENCE_PAIRS, start + i)
            order = torch.randperm(n * (n - 1) // 2, generator=rng).tolist()
            each = judged[:, 0].tolist()
            pairs += pairs_of(prompt, texts[own], each, options.pairs, options.margin, order)
            scores += each
    unseen = sum(is_held_out(pair.prompt) for pair in pairs)
    if not unseen or unseen == len(pairs):
        raise UserError("--count, --held-out: too few completions differ; ask for more")
    write(Path(options.out), pairs)
    print(
        f"{options.reward} reward of {len(scores)} completions: "
        f"mean {statistics.mean(scores):.4f}, "
        f"standard deviation {statistics.stdev(scores):.4f}\n"
        f"{len(pairs) - unseen} pairs to train on, {unseen} held out: {options.out}"
    )


if __name__ == "__main__":
    cli.run(main, "rlhf.preferences")
