"""Evaluate networks of a run, or the committed ones: ``python -m distillation.evaluate``."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from distillation import metrics
from distillation.data import shifts
from distillation.model import CLASSES, Classifier
from distillation.teacher import PRETRAINED, folder_of, load, logits
from shared import cli
from shared.config import CountOrZero
from shared.data.mnist import load_mnist
from shared.data.splits import Split, split
from shared.run.environment import describe
from shared.run.folder import write_json

NAMES = ("teacher", "baseline", "student")


@dataclass(frozen=True)
class Options:
    """Measure trained networks on the 10,000 test digits; NLL and KL are in nats per digit."""

    model: str = str(PRETRAINED)
    """Run folder, model folder, or a folder that holds teacher, baseline or student."""
    teacher: str = ""
    """Run or model folder of the teacher that KL(teacher || student) is measured to. Empty: the
    one in --model, or that the model was trained with."""
    test_size: CountOrZero = 0
    """Use only this many test digits. 0: all 10,000."""
    data: str = "data"
    """Folder of the data sets."""
    json: str = ""
    """File that receives every metric, with the environment."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""


def outputs(model: Classifier, images: Tensor, radius: int = 0) -> Tensor:
    """Logits [n, classes] of uint8 digits [n, 784]: the mean over shifts up to ``radius``."""
    return logits(model, images, shifts(radius), average=True, autocast=nullcontext())[0]


def evaluate(
    model: Classifier, teacher: Classifier | None, data: Split, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Every metric on the unseen digits; ``settings`` holds the role and the configuration."""
    config, labels = settings["config"], data.unseen_labels
    logits = outputs(model, data.unseen_images)
    result: dict[str, Any] = metrics.of_classifier(logits, labels)
    if settings["role"] == "teacher":
        radius = config["target_radius"]
        averaged = outputs(model, data.unseen_images, radius)
        return result | {
            "averaged_over_shifts": len(shifts(radius)),
            "averaged_errors": metrics.errors(averaged, labels),
        }
    if teacher is not None:
        result |= metrics.of_pair(outputs(teacher, data.unseen_images), logits)
    missing = [label for label in range(CLASSES) if str(label) not in config["transfer"]]
    if missing:
        result["corrected"] = corrected(model, logits, data, missing)
    return result


def corrected(
    model: Classifier, logits: Tensor, data: Split, missing: Sequence[int]
) -> dict[str, Any]:
    """Errors before and after biases make up for the classes ``missing`` in training.

    Prior matching names each class as often as it occurs among the training digits, without their
    labels. The paper's offset, chosen by the test labels, is beside it.
    """
    labels = data.unseen_labels
    absent = torch.zeros(CLASSES).index_fill_(0, torch.tensor(missing), 1.0).to(logits)
    of_missing = absent[labels] > 0
    prior = torch.bincount(data.labels, minlength=CLASSES).double() / len(data.labels)
    bias = metrics.match_prior(outputs(model, data.images), prior)
    offset, _ = metrics.best_offset(logits, labels, absent)

    def count(bias: Tensor) -> dict[str, int]:
        moved = logits + bias
        return {
            "errors": metrics.errors(moved, labels),
            "errors_on_missing": metrics.errors(moved[of_missing], labels[of_missing]),
        }

    return {
        "missing": list(missing),
        "digits_of_missing": int(of_missing.sum()),
        "raw": count(torch.zeros_like(absent)),
        "prior_matching": count(bias) | {"bias": bias.tolist()},
        "best_on_test": count(offset * absent) | {"offset": offset},
    }


def headline(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The metrics of each network as a table for people, and the effect of the biases."""
    lines = [
        f"{'':10} {'errors':>6} {'of':>6} {'NLL':>14} {'calibration':>12} "
        f"{'KL(teacher||.)':>17} {'agreement':>10}"
    ]
    notes = []
    for name, m in results.items():
        line = (
            f"{name:10} {m['errors']:6d} {m['digits']:6d} "
            f"{m['nll']:7.4f}+-{m['nll_standard_error']:.4f}{m['calibration_error']:13.4f}"
        )
        if "agreement" in m:
            line += (
                f" {m['kl_teacher_student']:9.4f}+-{m['kl_teacher_student_standard_error']:.4f}"
                f" {100 * m['agreement']:9.2f}%"
            )
        lines.append(line)
        if "averaged_errors" in m:
            notes.append(
                f"{name}: {m['averaged_errors']} errors with logits averaged over "
                f"{m['averaged_over_shifts']} shifts"
            )
        for way in ("raw", "prior_matching", "best_on_test") if "corrected" in m else ():
            part = m["corrected"]
            notes.append(
                f"{name}, classes {part['missing']} never seen, {way.replace('_', ' ')}: "
                f"{part[way]['errors']} errors, {part[way]['errors_on_missing']} of them on "
                f"the {part['digits_of_missing']} digits of these"
            )
    return "\n".join(lines + notes)


def load_networks(folder: Path, device: str) -> dict[str, tuple[Classifier, dict[str, Any]]]:
    """The networks of a run folder, a model folder or a folder of such, with their settings.

    Raises:
        UserError: no network in the folder, or one that cannot be read.
    """
    paths = {name: folder / name for name in NAMES if (folder / name).is_dir()}
    if not paths or (folder / "checkpoints").is_dir():
        paths["own"] = folder
    networks = {}
    for name, path in paths.items():
        model, settings = load(path, device)
        networks[settings["role"] if name == "own" else name] = model, settings
    return networks


def main() -> None:
    options = cli.check(cli.parse(Options, sys.argv[1:], "python -m distillation.evaluate"))
    networks = load_networks(Path(options.model), options.device)
    teacher = networks["teacher"][0] if "teacher" in networks else None
    trained_with = [settings["config"]["teacher"] for _, settings in networks.values()]
    if name := options.teacher or (trained_with[-1] if teacher is None else ""):
        teacher = load(folder_of(name), options.device)[0]
    digits = load_mnist(Path(options.data), options.device)
    data = split(digits, validation=0, train_size=0, test_size=options.test_size)
    results = {
        name: evaluate(model, teacher, data, settings)
        for name, (model, settings) in networks.items()
    }
    print(headline(results))
    if options.json:
        write_json(
            Path(options.json),
            {"model": options.model, "networks": results, "environment": describe()},
        )


if __name__ == "__main__":
    cli.run(main, "distillation.evaluate")
