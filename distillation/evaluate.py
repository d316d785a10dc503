"""Evaluate networks of a run, or the committed ones: ``python -m distillation.evaluate``."""

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
from distillation.teacher import PRETRAINED, load, logits, named
from shared import cli
from shared.config import CountOrZero, EvaluationOptions
from shared.data.mnist import load_mnist
from shared.data.splits import Split, split
from shared.run.report import write_evaluation

NAMES = ("teacher", "baseline", "student")


@dataclass(frozen=True)
class Options(EvaluationOptions):
    """Measure trained networks on the 10,000 test digits; nats per digit unless said."""

    model: str = str(PRETRAINED)
    """Run folder, model folder, or a folder that holds teacher, baseline or student."""
    teacher: str = ""
    """Run or model folder of the teacher that KL(teacher || student) is measured to. Empty: the
    one in --model, or that the model was trained with."""
    test_size: CountOrZero = 0
    """Number of test digits to use; 0: all 10,000."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""


def outputs(model: Classifier, images: Tensor, radius: int = 0) -> Tensor:
    """Logits [n, classes] of uint8 digits [n, 784]: the mean over shifts up to ``radius``."""
    return logits(model, images, shifts(radius), average=True, autocast=nullcontext())[0]


def evaluate(
    model: Classifier, teacher: Classifier | None, data: Split, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Every metric on the unseen digits; ``about`` holds the role and the configuration."""
    config, labels = about["config"], data.unseen_labels
    logits = outputs(model, data.unseen_images)
    result: dict[str, Any] = metrics.of_classifier(logits, labels)
    if about["role"] == "teacher":
        radius = config["target_radius"]
        averaged = outputs(model, data.unseen_images, radius)
        result |= {
            "averaged_over_shifts": len(shifts(radius)),
            "averaged_errors": metrics.errors(averaged, labels),
        }
    elif teacher is not None:
        result |= metrics.of_pair(outputs(teacher, data.unseen_images), logits)
    missing = [label for label in range(CLASSES) if str(label) not in config["transfer"]]
    if about["role"] != "teacher" and missing:
        result["corrected"] = corrected(model, logits, data, missing)
    return result


def corrected(
    model: Classifier, logits: Tensor, data: Split, missing: Sequence[int]
) -> dict[str, Any]:
    """Errors before and after the biases make up for classes that were never seen.

    By the prior: the training digits, without labels, are to be named as often as each class
    occurs among them. The paper's way, by the test labels, is given beside it.
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


def headline(networks: Mapping[str, Mapping[str, Any]]) -> str:
    """The metrics as a table for people, and what the bias correction did."""
    lines = [
        f"{'':10} {'errors':>6} {'of':>6} {'NLL':>14} {'calibration':>12} "
        f"{'KL(teacher||.)':>17} {'agreement':>10}"
    ]
    for name, result in networks.items():
        line = (
            f"{name:10} {result['errors']:6d} {result['digits']:6d} "
            f"{result['nll']:7.4f}+-{result['nll_standard_error']:.4f}"
            f"{result['calibration_error']:13.4f}"
        )
        if "agreement" in result:
            line += (
                f" {result['kl_teacher_student']:9.4f}"
                f"+-{result['kl_teacher_student_standard_error']:.4f}"
                f" {100 * result['agreement']:9.2f}%"
            )
        lines.append(line)
    for name, result in networks.items():
        if "averaged_errors" in result:
            lines.append(
                f"{name}: {result['averaged_errors']} errors with logits averaged over "
                f"{result['averaged_over_shifts']} shifts"
            )
        if "corrected" in result:
            after = result["corrected"]
            for way in ("raw", "prior_matching", "best_on_test"):
                lines.append(
                    f"{name}, classes {after['missing']} never seen, {way.replace('_', ' ')}: "
                    f"{after[way]['errors']} errors, {after[way]['errors_on_missing']} of them on "
                    f"the {after['digits_of_missing']} digits of these"
                )
    return "\n".join(lines)


def networks(folder: Path, device: str) -> dict[str, tuple[Classifier, dict[str, Any]]]:
    """Every network in a run folder, a model folder or a folder of such, each with its description.

    Raises:
        UserError: no network is there, or one cannot be read.
    """
    paths = {name: folder / name for name in NAMES if (folder / name).is_dir()}
    if not paths or (folder / "checkpoints").is_dir():
        paths["own"] = folder
    loaded = {}
    for name, path in paths.items():
        model, about = load(path, device)
        loaded[about["role"] if name == "own" else name] = model, about
    return loaded


def main() -> None:
    options = cli.read_options(Options, "distillation.evaluate")
    loaded = networks(Path(options.model), options.device)
    teacher = loaded["teacher"][0] if "teacher" in loaded else None
    teachers = [about["config"]["teacher"] for _, about in loaded.values()]
    if name := options.teacher or (teachers[-1] if teacher is None else ""):
        teacher = load(named(name), options.device)[0]
    digits = load_mnist(Path(options.data), options.device)
    data = split(digits, validation=0, train_size=0, test_size=options.test_size)
    results = {
        name: evaluate(model, teacher, data, about) for name, (model, about) in loaded.items()
    }
    print(headline(results))
    write_evaluation(options.json, options.model, networks=results)


if __name__ == "__main__":
    cli.run(main, "distillation.evaluate")
