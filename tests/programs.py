"""The one list of applications and programs for every test that runs, reads or names them all.

An application is deleted, or added, with its lines here; `shared.template` is one as well, and
tests of what all applications share start it when it does not matter which.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

APPLICATIONS = ("vae", "distillation", "distillation/lm", "rlhf", "trpo_ppo")
"""Folders that hold a README, options and results."""

FORKED = """
    vae.train vae.evaluate vae.sample distillation.train distillation.evaluate
    distillation.lm.train distillation.lm.evaluate rlhf.ppo rlhf.evaluate rlhf.dpo
    trpo_ppo.train trpo_ppo.evaluate shared.template.train shared.template.evaluate
""".split()
"""Programs that ``tests.zygote`` imports once and then starts in a fraction of a second."""

DOCUMENTED = """
    vae.config vae.evaluate vae.sample vae.experiments.bench vae.experiments.reproduce
    distillation.config distillation.evaluate distillation.experiments.reproduce
    distillation.lm.config distillation.lm.evaluate distillation.lm.experiments.bench
    distillation.lm.experiments.reproduce
    trpo_ppo.config trpo_ppo.evaluate trpo_ppo.experiments.bench trpo_ppo.experiments.compare
    trpo_ppo.experiments.reproduce
    rlhf.ppo rlhf.sft rlhf.reward rlhf.dpo rlhf.rloo rlhf.evaluate rlhf.preferences
    rlhf.experiments.bench rlhf.experiments.reproduce rlhf.experiments.study
    shared.experiments.kl.demo shared.experiments.kl.bench shared.experiments.kl.bench_functions
""".split()
"""Modules whose options, ``Config`` or ``Options``, READMEs may name."""

TRAINED = """
    vae.config distillation.config distillation.lm.config trpo_ppo.config
    rlhf.ppo rlhf.sft rlhf.reward rlhf.dpo rlhf.rloo shared.template.config
""".split()
"""Modules that hold the ``PRESETS`` of a training program, or ``presets(env, algo)``."""

CURVES = {
    "vae.train": "loss rate distortion unseen_bound",
    "distillation.train": "loss error",
    "distillation.lm.train": "loss unseen_kl_teacher_student unseen_kl_student_teacher",
    "trpo_ppo.train": "kl surrogate value_loss entropy score",
    "rlhf.ppo": "loss policy_gradient_norm objective/scores kl_old_new",
    "rlhf.dpo": "loss rewards/margins logps/chosen",
}
"""Metrics of smoke presets whose curves are committed in ``tests/curves``."""

STEPS = {
    "a VAE": "vae/train.py vae/objective.py vae/model.py",
    "distillation of digits": "distillation/train.py distillation/objective.py "
    "distillation/teacher.py",
    "distillation of a language model": "distillation/lm/train.py distillation/lm/objective.py "
    "distillation/lm/teacher.py",
    "PPO": "trpo_ppo/train.py trpo_ppo/rollout.py trpo_ppo/ppo.py",
    "TRPO": "trpo_ppo/train.py trpo_ppo/rollout.py trpo_ppo/trpo.py",
    "PPO on a language model": "rlhf/ppo.py rlhf/rollout.py rlhf/objective.py",
    "DPO": "rlhf/dpo.py rlhf/trl.py",
}
"""Files of one training step, in reading order, as CONTRIBUTING.md names them."""

TARGET, PROGRAM = "train-vae", "vae.train"
"""A target of the Makefile and the program that it starts."""

SPECIMEN = "shared.template.train"
"""The smallest application, for tests of what all of them share."""

# 60 digits in batches of 25: steps 25, 25, 10; two epochs are six steps, the first ends with 3.
SMALLEST = """
    smoke --train-size 60 --test-size 100 --batch-size 25 --epochs 2 --width 16 --warmup 2
""".split()
TINY = [*SMALLEST, *"--latent 4 --evaluation-samples 2".split()]

# The same steps for each of teacher, baseline and distilled student.
TINY_DISTILL = """
    smoke --train-size 60 --test-size 100 --batch-size 25 --epochs 2 --teacher-epochs 2 --warmup
    2 --student-layers 16 --teacher-layers conv-2-3-2
""".split()

TINY_LM = """
    smoke --teacher {model} --text {texts} --data {data} --layers 0 --length 8 --epochs 2
    --checkpoint-every 1
"""
TINY_RLHF = """
    smoke --model {model} --prompts {prompts} --data {data} --lora-targets q_proj v_proj
    --checkpoint-every 1
"""
TINY_CONTROL = """
    smoke --steps 1024 --num-envs 4 --rollout 64 --minibatch 32 --width 16
    --evaluation-episodes 1 --checkpoint-every 1
"""

OURS = ["model.safetensors", "optimizers.pt", "progress.json", "manifest.json"]
TRLS = ["progress.json", "manifest.json"]


class Disturbed(NamedTuple):
    """A small run, and where ``tests.reliability.campaign`` disturbs it: after a checkpoint."""

    program: str
    arguments: list[str]
    step: int
    gradient: int  # counted as the program computes them, from 1
    files: list[str]  # of a checkpoint, in which a kill can be timed
    inputs: list[Path]  # data and pretrained model


def disturbed(root: Path) -> dict[str, Disturbed]:
    """A small run of every application, on tiny models and texts made in ``root``."""
    from tests import tiny  # seconds to import, and only needed here

    model, texts = tiny.write_model(root / "model"), tiny.write_texts(root / "text")
    weights = sorted({*model.iterdir()} - {model / "generation_config.json"})  # all that is read
    digits = root / "digits" / "MNIST"
    shutil.copytree(ROOT / "data" / "MNIST", digits)
    images = ["--data", str(digits.parent)]
    raw = sorted((digits / "raw").iterdir())
    prompts, pairs = root / "prompts.jsonl", root / "pairs.jsonl"
    rows = [
        {"prompt": text, "chosen": " ba ca", "rejected": " bo co"}
        for text in tiny.texts(40, words=2)
    ]
    prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def arguments(template: str) -> list[str]:
        paths = {
            "model": model,
            "texts": texts,
            "data": root / "data",
            "prompts": prompts,
            "pairs": pairs,
        }
        return [word.format(**paths) for word in template.split()]

    return {
        "vae": Disturbed("vae.train", [*TINY, *images], 5, 5, OURS, raw),
        "distillation": Disturbed(
            "distillation.train", [*TINY_DISTILL, *images, "--stages", "teacher"], 5, 5, OURS, raw
        ),
        "distillation.lm": Disturbed(
            "distillation.lm.train",
            arguments(f"{TINY_LM} --epoch-blocks 11 --batch-size 5"),
            5,
            5,
            OURS,
            weights,
        ),
        "distillation.lm (TRL)": Disturbed(
            "distillation.lm.train",
            arguments(
                f"{TINY_LM} --epoch-blocks 12 --batch-size 4 --backend trl --on-policy 1 --prompt 3"
            ),
            5,
            5,
            TRLS,
            weights,
        ),
        "rlhf.ppo": Disturbed(
            "rlhf.ppo",
            arguments(f"{TINY_RLHF} --iterations 4 --batch-size 6 --completion 8"),
            3,
            15,
            OURS,
            [*weights, prompts],
        ),
        "rlhf.dpo (TRL)": Disturbed(
            "rlhf.dpo",
            arguments(f"{TINY_RLHF} --preferences {{pairs}}"),
            3,
            3,
            TRLS,
            [*weights, pairs],
        ),
        "trpo_ppo": Disturbed("trpo_ppo.train", arguments(TINY_CONTROL), 3, 40, OURS, []),
    }
