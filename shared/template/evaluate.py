"""Evaluate a run or a saved model: ``python -m shared.template.evaluate --model FOLDER``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared import cli
from shared.config import CountOrZero, EvaluationOptions
from shared.data.mnist import load_mnist
from shared.data.splits import Split, split
from shared.errors import UserError
from shared.run.checkpoint import check_architecture, read_model
from shared.run.report import write_evaluation
from shared.template import objective
from shared.template.model import ARCHITECTURE, Classifier


@dataclass(frozen=True)
class Options(EvaluationOptions):
    """Measure a trained classifier on the 10,000 test digits; nats per digit unless said."""

    model: str = "runs/template-default"
    """Model folder, or a run folder (its model, or its newest checkpoint while it is training)."""
    test_size: CountOrZero = 0
    """Number of test digits to use; 0: all 10,000."""


@torch.no_grad()
def unseen_metrics(model: Classifier, data: Split) -> dict[str, float]:
    """Errors, negative log-likelihood and KL(answer || uniform) on the unseen digits."""
    logits, labels = model(data.unseen_images.float() / 255), data.unseen_labels
    return {
        "digits": len(labels),
        "errors": int((logits.argmax(-1) != labels).sum()),
        "cross_entropy": objective.cross_entropy(logits, labels).double().mean().item(),
        "kl_to_uniform": objective.kl_to_uniform(logits).double().mean().item(),
    }


def headline(metrics: dict[str, Any]) -> str:
    """The metrics as lines for people."""
    return (
        f"errors                {metrics['errors']} of {metrics['digits']:,}\n"
        f"cross-entropy         {metrics['cross_entropy']:.4f} nats\n"
        f"KL(answer || uniform) {metrics['kl_to_uniform']:.4f} nats"
    )


def load(path: Path) -> Classifier:
    """A model from a model folder or a run folder.

    Raises:
        UserError: nothing there, damaged files, or weights of another architecture.
    """
    weights, about = read_model(path)
    try:
        model = Classifier(**{name: about["config"][name] for name in ARCHITECTURE})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: does not say which model it holds ({error!r})") from error
    check_architecture(model, weights, path)
    model.load_state_dict(weights)
    return model.eval()


def main() -> None:
    options = cli.read_options(Options, "shared.template.evaluate")
    model = load(Path(options.model))
    digits = load_mnist(Path(options.data))
    data = split(digits, validation=0, train_size=0, test_size=options.test_size)
    metrics = unseen_metrics(model, data)
    print(headline(metrics))
    write_evaluation(options.json, options.model, metrics=metrics)


if __name__ == "__main__":
    cli.run(main, "shared.template.evaluate")
