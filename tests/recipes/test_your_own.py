"""The recipes of CONTRIBUTING.md: your own pictures, language model, prompts, reward and pairs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.data.images import load_images
from shared.errors import UserError
from tests import tiny
from tests.helpers import Processes, metrics, refused


def pictures(root: Path, count: int = 40) -> Path:
    """Two classes of colour pictures of 32 x 40 pixels: bright above, bright below."""
    rng = np.random.default_rng(0)
    for name, rows in (("above", slice(0, 20)), ("below", slice(20, 40))):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 60, (40, 32, 3), dtype=np.uint8)
            pixels[rows] += 180
            Image.fromarray(pixels).save(root / name / f"{i:03}.png")
    return root


def test_pictures_in_the_form_of_mnist(tmp_path: Path) -> None:
    found = load_images(pictures(tmp_path / "a"))
    assert found.train_images.shape == (len(found.train_labels), 784)
    assert found.train_images.dtype == torch.uint8
    assert len(found.train_labels) + len(found.test_labels) == 80
    assert 2 <= len(found.test_labels) <= 20
    upper = found.train_images.unflatten(1, (28, 28))[:, :13].float().mean((1, 2))
    assert torch.equal(upper > 150, found.train_labels == 0)
    again = load_images(tmp_path / "a")
    assert torch.equal(found.test_images, again.test_images)


def test_pictures_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--images .*none: not a folder"):
        load_images(tmp_path / "none")
    one = pictures(tmp_path / "a")
    (one / "above").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds 1 folders of pictures"):
        load_images(one)
    (one / "empty").mkdir()
    with pytest.raises(UserError, match="empty: too few pictures"):
        load_images(one)
    (one / "empty" / "a.png").write_text("no picture")
    with pytest.raises(UserError, match=r"a\.png: cannot be read as a picture"):
        load_images(one)


def test_a_vae_of_ones_own_pictures(tmp_path: Path, processes: Processes) -> None:
    images, run = pictures(tmp_path / "images"), tmp_path / "run"
    options = [
        "--images",
        images,
        "--batch-size",
        "25",
        "--epochs",
        "3",
        "--width",
        "16",
        "--latent",
        "4",
        "--evaluation-samples",
        "2",
        "--pixels",
        "grey",
    ]
    result = processes("smoke", *options, "--out", run, program="vae.train")
    assert result.code == 0, result.err
    bounds = [line["unseen_bound"] for line in metrics(run)]
    assert bounds[-1] > bounds[0]
    assert (run / "pictures" / "samples.png").is_file()
    told = json.loads((run / "summary.json").read_text())["unseen"]
    result = processes(
        "--model", run, "--samples", "2", "--json", tmp_path / "a.json", program="vae.evaluate"
    )
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "a.json").read_text())["metrics"]["rate"] == told["rate"]
    assert processes("--model", run, "--out", tmp_path / "b", program="vae.sample").code == 0
    images.rename(tmp_path / "moved")
    refused(processes("--model", run, program="vae.evaluate"), "images: not a folder")


def test_distillation_of_ones_own_language_model(tmp_path: Path, processes: Processes) -> None:
    teacher, text = tiny.write_model(tmp_path / "teacher"), tiny.write_texts(tmp_path / "text")
    run = tmp_path / "run"
    result = processes(
        "smoke",
        "--teacher",
        teacher,
        "--text",
        text,
        "--layers",
        "0",
        "--length",
        "8",
        "--epochs",
        "4",
        "--epoch-blocks",
        "40",
        "--lr",
        "1e-2",
        "--out",
        run,
        program="distillation.lm.train",
    )
    assert result.code == 0, result.err
    distances = [line["unseen_kl_teacher_student"] for line in metrics(run)]
    assert distances[-1] < distances[0]


def bright(completions: list[str], **_: Any) -> list[float]:
    """A reward of one's own: the share of letters a."""
    return [text.count("a") / max(1, len(text)) for text in completions]


def test_ppo_and_dpo_with_ones_own_files(tmp_path: Path, processes: Processes) -> None:
    model = tiny.write_model(tmp_path / "model")
    texts = tiny.texts(55, words=4)
    prompts, pairs = tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    pairs.write_text(
        "".join(
            json.dumps({"prompt": text, "chosen": " ba ca", "rejected": " bo co"}) + "\n"
            for text in texts
        )
    )
    common = [
        "smoke",
        "--model",
        model,
        "--prompts",
        prompts,
        "--gold",
        f"{__name__}:bright",
        "--lora-targets",
        "q_proj",
        "v_proj",
    ]
    ppo = processes(
        *common, "--reward", f"{__name__}:bright", "--out", tmp_path / "ppo", program="rlhf.ppo"
    )
    assert ppo.code == 0, ppo.err
    line = metrics(tmp_path / "ppo")[-1]
    assert line["rewards/gold/mean"] == line[f"rewards/{__name__}:bright/mean"]
    dpo = processes(
        *common,
        "--preferences",
        pairs,
        "--lr",
        "0.02",
        "--out",
        tmp_path / "dpo",
        program="rlhf.dpo",
    )
    assert dpo.code == 0, dpo.err
    told = json.loads((tmp_path / "dpo" / "summary.json").read_text())["evaluation"]
    assert told["kl"] > 1e-3
    assert told["policy"]["gold"]["mean"] > told["reference"]["gold"]["mean"]
