"""Evaluate a run or a saved model: ``python -m vae.evaluate [--model FOLDER] [--json FILE]``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from shared import cli
from shared.config import Count, CountOrZero, EvaluationOptions
from shared.data.splits import Split, split
from shared.errors import UserError
from shared.kl import kl_standard_normal
from shared.run.checkpoint import check_architecture, read_model
from shared.run.report import write_evaluation
from shared.training.statistics import mean_and_standard_error
from vae.config import Config
from vae.data import Pixels, read, test_view
from vae.metrics import bound, encode_all, evaluate_vae, evaluate_vib
from vae.model import ARCHITECTURE, VAE, VIB, build

PRETRAINED = "vae/pretrained/default"


@dataclass(frozen=True)
class Options(EvaluationOptions):
    """Measure a trained model on the 10,000 test digits; nats per digit unless said."""

    model: str = PRETRAINED
    """Model folder, or a run folder (its model, or its newest checkpoint while it is training)."""
    against: str = ""
    """A second VAE: compare the two models' log-evidence on the same digits (Bayes factor)."""
    samples: Count = 500
    """Importance samples per digit (Burda et al. 2015: 5000)."""
    test_size: CountOrZero = 0
    """Number of test digits to use; 0: all 10,000."""
    seed: CountOrZero = 0
    """Seed of the evaluation's noise; the binarisation of the test digits is fixed."""
    images: str = ""
    """As in training; empty: those that the model was trained on."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""


def evaluate(
    model: VAE | VIB, pixels: Pixels, data: Split, samples: int, seed: int = 0
) -> dict[str, Any]:
    """Compute every metric on the unseen digits of ``data``."""
    x = test_view(data.unseen_images, pixels)
    if isinstance(model, VIB):
        return evaluate_vib(model, x, data.unseen_labels, seed)
    train_x = test_view(data.images, pixels)
    return evaluate_vae(model, x, data.unseen_labels, train_x, data.labels, samples, seed)


@torch.no_grad()
def unseen_metrics(model: VAE | VIB, data: Split, config: Config) -> dict[str, float]:
    """Bound (or error) and rate on the unseen digits; an IWAE's bound with 5 samples at most."""
    x = test_view(data.unseen_images, config.pixels)
    mu, logvar = encode_all(model, x)
    rate = kl_standard_normal(mu, logvar).sum(-1).mean().item()
    if isinstance(model, VIB):
        wrong = model.decode(mu[None])[0].argmax(-1) != data.unseen_labels
        return {"unseen_error_percent": 100 * wrong.double().mean().item(), "unseen_rate": rate}
    k = min(config.samples, 5)
    return {"unseen_bound": bound(model, x, k)[0].mean().item(), "unseen_rate": rate}


def headline(metrics: dict[str, Any]) -> str:
    """The metrics as lines for people."""
    if "errors" in metrics:
        return (
            f"test error            {metrics['error_percent']:.2f} % ({metrics['errors']} of "
            f"{metrics['digits']:,}; mean of {metrics['samples']} samples of z)\n"
            f"I(X; Z) at most       {metrics['rate']:.2f} nats (the rate)\n"
            f"I(Z; Y) at least      {metrics['information_about_class_at_least']:.3f} nats"
        )
    return (
        f"log-likelihood        {metrics['log_likelihood']:.2f} "
        f"+- {metrics['log_likelihood_standard_error']:.2f} nats "
        f"({metrics['importance_samples']} importance samples, {metrics['digits']:,} digits), "
        f"{metrics['bits_per_pixel']:.4f} bits per pixel\n"
        f"ELBO                  {metrics['elbo']:.2f} = -(distortion {metrics['distortion']:.2f} "
        f"+ rate {metrics['rate']:.2f})\n"
        f"rate                  {metrics['information_about_which_digit']:.2f} information about "
        f"which digit (at most log n = {metrics['information_ceiling_log_n']:.2f}) "
        f"+ {metrics['aggregate_posterior_kl']:.2f} KL(q(z) || p(z))\n"
        f"active units          {metrics['active_units']} of {len(metrics['kl_per_latent'])}; "
        f"{metrics['diagnosis']}\n"
        f"linear probe          {100 * metrics['probe_accuracy']:.2f} % of digits from the means"
    )


def load(path: str, device: str) -> tuple[VAE | VIB, dict[str, Any]]:
    """Model and what it was trained with, from a model folder or a run folder.

    Raises:
        UserError: nothing there, damaged files, or weights of another architecture.
    """
    weights, about = read_model(Path(path))
    try:
        config = about["config"]
        model = build(config["objective"], **{name: config[name] for name in ARCHITECTURE})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: does not say which model it holds ({error!r})") from error
    check_architecture(model, weights, Path(path))
    model.load_state_dict(weights)
    return model.to(device).eval(), about


def compare(a: VAE, b: VAE, x: torch.Tensor, samples: int, seed: int) -> dict[str, float]:
    """Log Bayes factor of a over b on digits x: the sum of paired differences of log-evidence.

    The evidence is p(x | weights), importance-weighted; weights are plugged in, not integrated
    out. Both estimates are lower bounds in expectation.
    """
    difference = (bound(a, x, samples, seed)[0] - bound(b, x, samples, seed)[0]).double()
    mean, error = mean_and_standard_error(difference)
    return {
        "log_evidence_difference": mean,
        "log_evidence_difference_standard_error": error,
        "log_bayes_factor": mean * len(x),
        "log_bayes_factor_standard_error": error * len(x),
        "share_of_digits_preferring": (difference > 0).double().mean().item(),
    }


def main() -> None:
    options = cli.read_options(Options, "vae.evaluate")
    model, about = load(options.model, options.device)
    pixels: Pixels = about["config"]["pixels"]
    images = options.images or about["config"].get("images", "")
    digits = read(options.data, images, options.device)
    data = split(digits, validation=0, train_size=0, test_size=options.test_size)
    metrics = evaluate(model, pixels, data, options.samples, options.seed)
    print(headline(metrics))
    if options.against:
        other, about_other = load(options.against, options.device)
        if not (isinstance(model, VAE) and isinstance(other, VAE)):
            raise UserError("--against compares two VAEs; a VIB has no log-evidence of x")
        if about_other["config"]["pixels"] != pixels:
            raise UserError(
                f"--against {options.against}: was trained on other pixels than {pixels}"
            )
        x = test_view(data.unseen_images, pixels)
        metrics["against"] = compare(model, other, x, options.samples, options.seed)
        result = metrics["against"]
        print(
            f"log Bayes factor      {result['log_bayes_factor']:+.0f} "
            f"+- {result['log_bayes_factor_standard_error']:.0f} nats over {options.against}, "
            f"{result['log_evidence_difference']:+.3f} per digit"
        )
    write_evaluation(options.json, options.model, metrics=metrics)


if __name__ == "__main__":
    cli.run(main, "vae.evaluate")
