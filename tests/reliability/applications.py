"""Small runs of every application that can be disturbed, on tiny models and texts."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from tests import tiny
from tests.helpers import TINY, TINY_DISTILL


class Application(NamedTuple):
    """A program, the arguments of a small run, and where it is disturbed: after a checkpoint."""

    program: str
    arguments: list[object]
    step: int
    gradient: int  # counted as the program computes them, from 1
    files: list[str]  # of a checkpoint, in which a kill can be timed
    inputs: list[Path]  # data and pretrained model


OWN = ["model.safetensors", "optimizers.pt", "progress.json", "manifest.json"]
RENAMES = ["before rename", "after rename"]


def applications(root: Path) -> dict[str, Application]:
    """All of them, on tiny models and texts made in ``root``."""
    model, texts = tiny.write_model(root / "model"), tiny.write_texts(root / "text")
    weights = sorted({*model.iterdir()} - {model / "generation_config.json"})  # all that is read
    digits = root / "digits" / "MNIST"
    shutil.copytree(Path("data") / "MNIST", digits)
    images = ["--data", digits.parent]
    raw = sorted((digits / "raw").iterdir())
    prompts, pairs = root / "prompts.jsonl", root / "pairs.jsonl"
    words = tiny.texts(40, words=2)
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in words))
    pairs.write_text(
        "".join(
            json.dumps({"prompt": text, "chosen": " ba ca", "rejected": " bo co"}) + "\n"
            for text in words
        )
    )
    language = ["smoke", "--model", model, "--prompts", prompts, "--data", root / "data"]
    lora = ["--lora-targets", "q_proj", "v_proj"]
    return {
        "vae": Application("vae.train", [*TINY, *images], 5, 5, OWN, raw),
        "distillation": Application(
            "distillation.train", [*TINY_DISTILL, *images, "--stages", "teacher"], 5, 5, OWN, raw
        ),
        "distillation.lm": Application(
            "distillation.lm.train",
            [
                "smoke",
                "--teacher",
                model,
                "--text",
                texts,
                "--layers",
                "0",
                "--length",
                "8",
                "--epochs",
                "2",
                "--epoch-blocks",
                "11",
                "--batch-size",
                "5",
                "--checkpoint-every",
                "1",
                "--data",
                root / "data",
            ],
            5,
            5,
            OWN,
            weights,
        ),
        "distillation.lm (TRL)": Application(
            "distillation.lm.train",
            [
                "smoke",
                "--teacher",
                model,
                "--text",
                texts,
                "--layers",
                "0",
                "--length",
                "8",
                "--epochs",
                "2",
                "--epoch-blocks",
                "12",
                "--batch-size",
                "4",
                "--checkpoint-every",
                "1",
                "--backend",
                "trl",
                "--on-policy",
                "1",
                "--prompt",
                "3",
                "--data",
                root / "data",
            ],
            5,
            5,
            ["progress.json", "manifest.json"],
            weights,
        ),
        "rlhf.ppo": Application(
            "rlhf.ppo",
            [
                *language,
                *lora,
                "--iterations",
                "4",
                "--batch-size",
                "6",
                "--completion",
                "8",
                "--checkpoint-every",
                "1",
            ],
            3,
            15,
            OWN,
            [*weights, prompts],
        ),
        "rlhf.dpo (TRL)": Application(
            "rlhf.dpo",
            [
                *language,
                *lora,
                "--preferences",
                pairs,
                "--checkpoint-every",
                "1",
            ],
            3,
            3,
            ["progress.json", "manifest.json"],
            [*weights, pairs],
        ),
        "trpo_ppo": Application(
            "trpo_ppo.train",
            """
                smoke --steps 1024 --num-envs 4 --rollout 64 --minibatch 32 --width 16
                --evaluation-episodes 1 --checkpoint-every 1
            """.split(),
            3,
            40,
            OWN,
            [],
        ),
    }
