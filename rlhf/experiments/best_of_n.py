"""Many completions of the reference, scored.

``python -m rlhf.experiments.best_of_n [--reward ...]``

From these scores best-of-n is known for every n at once (``overoptimisation``), and so are
mean and standard deviation of the rewards before any training.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlhf.config import LanguageConfig
from rlhf.prompts import Prompts, prompts_of
from rlhf.rewards.environment import Environment
from shared import cli
from shared.config import Count, CountOrZero
from shared.errors import UserError
from shared.language_models.causal import LanguageModel, load_causal
from shared.run.environment import describe
from shared.run.folder import write_json
from shared.training.seeding import EVALUATION, generator

PER_PASS = 64  # completions at a time


@dataclass(frozen=True)
class Options:
    """Sample every held-out prompt many times and keep the rewards."""

    model: str = "smollm2"
    """As in rlhf.ppo."""
    prompts: str = "movies"
    """As in rlhf.ppo; held-out ones."""
    reward: str = "pretrained"
    """The proxy that the best is picked by, as in rlhf.ppo."""
    gold: str = "gold"
    """The reward that counts, as in rlhf.ppo."""
    count: Count = 64
    """Prompts at most."""
    samples: Count = 32
    """Completions of each prompt: the largest n."""
    completion: Count = 24
    """Tokens of a completion at most."""
    seed: CountOrZero = 0
    """Seed of the completions."""
    data: str = "data"
    """Folder of the data sets and of SmolLM2."""
    out: str = "runs/rlhf-best-of-n"
    """Folder for summary.json, which holds the scores, config.json and env.json."""


@torch.no_grad()
def score(
    lm: LanguageModel, task: Environment, prompts: Prompts, samples: int, seed: int
) -> Tensor:
    """Rewards of independent completions of every prompt: [prompts, samples, rewards] float64."""
    rows = torch.arange(len(prompts.texts)).repeat_interleave(samples)
    uniforms = torch.rand(
        len(rows), task.config.completion, generator=generator("cpu", seed, EVALUATION, 2)
    )
    scores = []
    for part in torch.arange(len(rows)).split(PER_PASS):
        chunk = prompts.at(rows[part].tolist())
        scores.append(task.rewards_of(chunk, task.complete(lm, chunk, uniforms[part])))
        print(f"\r{int(part[-1]) + 1}/{len(rows)} completions", end="", flush=True)
    print()
    return torch.cat(scores).reshape(len(prompts.texts), samples, -1)


def main() -> None:
    options = cli.read_options(Options, "rlhf.experiments.best_of_n")
    if not options.gold:
        raise UserError("--gold: name one; best-of-n is measured by it")
    start, folder = time.perf_counter(), Path(options.out)
    config = LanguageConfig(
        prompts=options.prompts, completion=options.completion, gold=options.gold, data=options.data
    )
    model, tokenizer = load_causal("--model", options.model, Path(options.data))
    task = Environment(config, tokenizer, model.config, (options.reward,))
    prompts = prompts_of(config, tokenizer, held_out=True, limit=options.count)
    scores = score(LanguageModel(model).eval(), task, prompts, options.samples, options.seed)
    write_json(folder / "config.json", {"application": "rlhf-best-of-n", "config": asdict(options)})
    write_json(folder / "env.json", describe())
    write_json(
        folder / "summary.json",
        {
            "prompts": prompts.texts,
            "samples": options.samples,
            "seconds": round(time.perf_counter() - start, 1),
            "proxy": scores[..., 0].tolist(),
            "gold": scores[..., 1].tolist(),
        },
    )
    print(f"scores in {folder / 'summary.json'}")


if __name__ == "__main__":
    cli.run(main, "rlhf.experiments.best_of_n")
