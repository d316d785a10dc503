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
from distillation.teacher import PRETRAINED, load, logits, named
from shared import cli
from shared.config import CountOrZero
from shared.data.mnist import load_mnist
from shared.data.splits import Split, split
from shared.run.environment import describe
from shared.run.folder import write_json

NAMES = ("teacher", "baseline", "student")


@dataclass(frozen=True)
class Options:
    """Measure trained networks on the 10,000 test digits; nats per digit unless said."""

    model: str = str(PRETRAINED)
    """Run folder, model folder, or a folder that holds teacher, baseline or student."""
    teacher: str = ""
    """Run or model folder of the teacher that KL(teacher || student) is measured to. Empty: the
    one in --model, or that the model was trained with."""
    test_size: CountOrZero = 0
    """Use only so many test digits. 0: all 10,000."""
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
    model: Classifier, teacher: Classifier | None, data: Split, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Every metric on the unseen digits; ``about`` holds the role and the configuration."""
    config, labels = about["config"], data.unseen_labels
    own = outputs(model, data.unseen_images)
    found: dict[str, Any] = metrics.of_classifier(own, labels)
    if about["role"] == "teacher":
        radius = config["target_radius"]
        averaged = outputs(model, data.unseen_images, radius)
        found |= {
            "averaged_over_shifts": len(shifts(radius)),
            "averaged_errors": metrics.errors(averaged, labels),
        }
    elif teacher is not None:
        found |= metrics.of_pair(outputs(teacher, data.unseen_images), own)
    missing = [label for label in range(CLASSES) if str(label) not in config["transfer"]]
    if about["role"] != "teacher" and missing:
        found["corrected"] = corrected(model, own, data, missing)
    return found


def corrected(
    model: Classifier, own: Tensor, data: Split, missing: Sequence[int]
) -> dict[str, Any]:
    """Errors before and after the biases make up for classes that were never seen.

    By the prior: the training digits, without labels, are to be named as often as each class
    occurs among them. The paper's way, by the test labels, is given beside it.
    """
    labels = data.unseen_labels
    absent = torch.zeros(CLASSES).index_fill_(0, torch.tensor(missing), 1.0).to(own)
    of_missing = absent[labels] > 0
    prior = torch.bincount(data.labels, minlength=CLASSES).double() / len(data.labels)
    bias = metrics.match_prior(outputs(model, data.images), prior)
    offset, _ = metrics.best_offset(own, labels, absent)

    def count(bias: Tensor) -> dict[str, int]:
        moved = own + bias
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
    for name, found in networks.items():
        line = (
            f"{name:10} {found['errors']:6d} {found['digits']:6d} "
            f"{found['nll']:7.4f}+-{found['nll_standard_error']:.4f}"
            f"{found['calibration_error']:13.4f}"
        )
        if "agreement" in found:
            line += (
                f" {found['kl_teacher_student']:9.4f}"
                f"+-{found['kl_teacher_student_standard_error']:.4f}"
                f" {100 * found['agreement']:9.2f}%"
            )
        lines.append(line)
    for name, found in networks.items():
        if "averaged_errors" in found:
            lines.append(
                f"{name}: {found['averaged_errors']} errors with logits averaged over "
                f"{found['averaged_over_shifts']} shifts"
            )
        if "corrected" in found:
            told = found["corrected"]
            for way in ("raw", "prior_matching", "best_on_test"):
                lines.append(
                    f"{name}, classes {told['missing']} never seen, {way.replace('_', ' ')}: "
                    f"{told[way]['errors']} errors, {told[way]['errors_on_missing']} of them on "
                    f"the {told['digits_of_missing']} digits of these"
                )
    return "\n".join(lines)


def networks(folder: Path, device: str) -> dict[str, tuple[Classifier, dict[str, Any]]]:
    """Every network in a run folder, a model folder or a folder of such, with what is known of it.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    paths = {name: folder / name for name in NAMES if (folder / name).is_dir()}
    if not paths or (folder / "checkpoints").is_dir():
        paths["own"] = folder
    found = {}
    for name, path in paths.items():
        model, about = load(path, device)
        found[about["role"] if name == "own" else name] = model, about
    return found


def main() -> None:
    options = cli.check(cli.parse(Options, sys.argv[1:], "python -m distillation.evaluate"))
    found = networks(Path(options.model), options.device)
    teacher = found["teacher"][0] if "teacher" in found else None
    known = [about["config"]["teacher"] for _, about in found.values()]
    if given := options.teacher or (known[-1] if teacher is None else ""):
        teacher = load(named(given), options.device)[0]
    digits = load_mnist(Path(options.data), options.device)
    data = split(digits, validation=0, train_size=0, test_size=options.test_size)
    results = {
        name: evaluate(model, teacher, data, about) for name, (model, about) in found.items()
    }
    print(headline(results))
    if options.json:
        write_json(
            Path(options.json),
            {"model": options.model, "networks": results, "environment": describe()},
        )


if __name__ == "__main__":
    cli.run(main, "distillation.evaluate")
