"""Preference pairs for reward model and DPO: ``python -m rlhf.preferences [--option value ...]``.

The reference completes prompts; of two completions of one prompt the chosen one has the higher
reward, by at least ``--margin``. A line of the file is a pair: prompt, chosen, rejected,
chosen_score, rejected_score. The texts are prompt + chosen and prompt + rejected.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.prompts import Prompts, is_held_out, read_prompts
from rlhf.rewards import call, load_reward
from rlhf.rollout import Completions, end_tokens, sample, uniforms
from shared import cli
from shared.config import Count, CountOrZero, NonNegative
from shared.errors import UserError
from shared.language_models.causal import LanguageModel, load_causal
from shared.run.folder import write_whole
from shared.training.seeding import PREFERENCE_COMPLETIONS, PREFERENCE_PAIRS, generator


@dataclass(frozen=True)
class Options:
    """Write preference pairs: sample completions, score them, pair them."""

    prompts: str = "movies"
    """As in rlhf.ppo."""
    count: Count = 1400
    """Number of prompts for training."""
    held_out: Count = 160
    """Number of held-out prompts, for validation."""
    max_prompt: Count = 64
    """Longest prompt, in tokens; longer ones are refused."""
    reward: str = "gold"
    """Reward by which the better completion is chosen, as in rlhf.ppo."""
    completions: Count = 4
    """Samples for each prompt (Rafailov et al. 2023: 4)."""
    pairs: Count = 2
    """Pairs of a prompt at most, drawn at random from those far enough apart (Rafailov et al.
    2023: 6)."""
    margin: NonNegative = 0.3
    """Least difference of the rewards of a pair. In the gold reward, which is in [-1, 1], 0.3 is
    about one word of praise or blame."""
    tokens: Count = 24
    """Tokens of a completion at most."""
    seed: CountOrZero = 0
    """Seed of the samples and of the draw of pairs."""
    batch_size: Count = 20
    """Prompts completed together; it changes only the speed."""
    model: str = "smollm2"
    """smollm2, a model folder, or a model of the Hub."""
    data: str = "data"
    """Folder of the data sets; smollm2 is fetched into it when missing."""
    out: str = "rlhf/data/preferences.jsonl"
    """File for the pairs, written as a whole at the end or not at all."""


@dataclass(frozen=True)
class Pair:
    """Two completions of a prompt and their rewards."""

    prompt: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float


def choose_prompts(options: Options, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The first prompts of each part, training ones first.

    Raises:
        UserError: a part has fewer prompts than the options want.
    """
    texts, tokens, name, longest = [], [], options.prompts, options.max_prompt
    parts = (("--count", options.count, False), ("--held-out", options.held_out, True))
    for option, count, part in parts:
        prompts = read_prompts("--prompts", name, tokenizer, longest, held_out=part)
        if count > len(prompts.texts):
            raise UserError(f"{option} {count}: there are {len(prompts.texts)} such prompts")
        texts += prompts.texts[:count]
        tokens += prompts.tokens[:count]
    return Prompts(texts, tokens, {})


def pairs_of(
    prompt: str,
    completions: Sequence[str],
    scores: Sequence[float],
    most: int,
    margin: float,
    order: Sequence[int],
) -> list[Pair]:
    """The first ``most`` pairs in ``order`` whose scores are at least ``margin`` apart.

    A completion that was cut within a character is left out.

    Args:
        order: a permutation of the pairs of ``completions``, as itertools counts them.
    """
    candidates = list(combinations(range(len(completions)), 2))
    pairs = []
    for a, b in (candidates[i] for i in order):
        high, low = (a, b) if scores[a] >= scores[b] else (b, a)
        whole = "\ufffd" not in completions[a] + completions[b]
        if whole and scores[high] - scores[low] >= margin:
            pairs.append(
                Pair(prompt, completions[high], completions[low], scores[high], scores[low])
            )
    return pairs[:most]


def complete(
    options: Options, lm: LanguageModel, prompts: Prompts, ends: Sequence[int], padding: int
) -> Iterator[tuple[int, Completions]]:
    """``options.completions`` samples of each prompt at temperature 1, some prompts at a time.

    A prompt's samples are a function of its place and the seed. Yields the place of the first
    prompt and the completions of the prompts from there on.
    """
    n, count = options.completions, len(prompts.texts)
    for start in range(0, count, options.batch_size):
        part = range(start, min(start + options.batch_size, count))
        keys = ((options.seed, PREFERENCE_COMPLETIONS, i) for i in part)
        numbers = torch.cat([uniforms(n, options.tokens, *key) for key in keys])
        tokens = [prompts.tokens[i] for i in part for _ in range(n)]
        yield start, sample(lm, tokens, numbers, ends, padding, temperature=1.0)
        print(f"{part.stop}/{count} prompts completed", flush=True)


def main() -> None:
    options = cli.read_options(Options, "rlhf.preferences")
    if options.completions < 2:
        raise UserError(f"--completions {options.completions}: must be >= 2, for a pair")
    root = Path(options.data)
    model, tokenizer = load_causal("--model", options.model, root)
    prompts = choose_prompts(options, tokenizer)
    reward = load_reward("--reward", options.reward, root)
    ends, padding = end_tokens(model.config, tokenizer), int(tokenizer.pad_token_id or 0)
    pairs, scores, n = [], [], options.completions
    lm, name = LanguageModel(model).eval(), f"--reward {options.reward}"
    for start, completions in complete(options, lm, prompts, ends, padding):
        texts, tokens = completions.texts(tokenizer), completions.token_lists()
        for i in range(len(texts) // n):
            prompt, rows = prompts.texts[start + i], slice(i * n, i * n + n)
            rewards = call([reward], [name], [prompt] * n, texts[rows], tokens[rows], {})
            prompt_scores = rewards[:, 0].tolist()
            rng = generator("cpu", options.seed, PREFERENCE_PAIRS, start + i)
            order = torch.randperm(n * (n - 1) // 2, generator=rng).tolist()
            pairs += pairs_of(
                prompt, texts[rows], prompt_scores, options.pairs, options.margin, order
            )
            scores += prompt_scores
    unseen = sum(is_held_out(pair.prompt) for pair in pairs)
    if not unseen or unseen == len(pairs):
        raise UserError("--count, --held-out: too few completions differ; ask for more")
    lines = (json.dumps(vars(pair)) + "\n" for pair in pairs)
    write_whole(Path(options.out), "".join(lines))
    print(
        f"{options.reward} reward of {len(scores)} completions: "
        f"mean {statistics.mean(scores):.4f}, "
        f"standard deviation {statistics.stdev(scores):.4f}\n"
        f"{len(pairs) - unseen} pairs to train on, {unseen} held out: {options.out}"
    )


if __name__ == "__main__":
    cli.run(main, "rlhf.preferences")
