"""The lines at a run's start and the files at its end: model folder, pictures, summary."""

from pathlib import Path
from typing import Any

from shared.data.splits import Split
from shared.errors import UserError
from shared.run import report
from shared.run.folder import read_metrics
from shared.run.run import Run
from vae import pictures
from vae.config import Config
from vae.data import test_view
from vae.evaluate import evaluate, headline
from vae.model import CLASSES, VAE, VIB


def check_classes(config: Config, data: Split) -> None:
    """UserError if a VIB has fewer answers than the data has classes."""
    classes = int(data.labels.max()) + 1
    if config.objective == "vib" and classes > CLASSES:
        raise UserError(
            f"--images {config.images}: has {classes} classes, objective vib at most {CLASSES}"
        )


def print_run(run: Run, config: Config, model: VAE | VIB, data: Split) -> None:
    """Print the batch arithmetic, the number of parameters and the units."""
    n, size = len(data.images), config.batch_size
    steps = -(-n // size)
    unseen = "validation" if config.validation else "test"
    grey = "" if config.pixels == "binarised" else ": Bernoulli scores, not log-likelihoods"
    report.print_setup(
        run,
        model=f"{config.network} {type(model).__name__}, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{config.latent} latents, objective {config.objective}, beta {config.beta:g}",
        data=f"{n:,} training and {len(data.unseen_images):,} {unseen} digits, "
        f"pixels {config.pixels}{grey}",
        batch=f"{report.shares(size)}; {steps} steps x {config.epochs} epochs = "
        f"{steps * config.epochs:,} steps",
        units="nats per digit, unless said",
    )


def write_outputs(run: Run, config: Config, model: VAE | VIB, data: Split) -> None:
    """Evaluate the trained model and write model/, pictures/ and summary.json of the run."""
    run.say("evaluating ...")
    seconds = round(run.elapsed(), 1)
    metrics = evaluate(model, config.pixels, data, config.evaluation_samples)
    settings = report.training_settings(run.preset, config)
    text = card(model, settings, metrics)
    report.write_trained(run, model.save_pretrained, text, settings, metrics)
    with report.pictures_folder(run) as folder:
        draw(model, config, data, read_metrics(run.folder), metrics, folder)
    report.finish_run(
        run,
        report.training_summary(run, seconds) | {"unseen": metrics},
        f"\n{headline(metrics)}\n\ntrained in {seconds:.0f} s, all in {run.elapsed():.0f} s; "
        f"pictures in {folder}, model in {run.folder / 'model'}",
    )


def card(model: VAE | VIB, settings: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained, what it reached, how to load it."""
    kind, config = type(model).__name__, settings["config"]
    names = """objective beta pixels network latent width depth channels activation epochs
        batch_size samples seed""".split()
    return report.model_card(
        f"{kind} on MNIST, preset `{settings['preset']}` of KL Zoo",
        ["mnist", kind.lower(), "variational-inference"],
        result=f"Trained on {config['pixels']} 28 x 28 digits. On\n{metrics['digits']:,} unseen "
        f"digits:\n\n```\n{headline(metrics)}\n```",
        options={name: config[name] for name in names},
        code=f"from vae.model import {kind}\n\n"
        f'model = {kind}.from_pretrained("path/to/this/folder")',
        note="Limits: made for MNIST; the metrics say nothing about other images.",
    )


def draw(
    model: VAE | VIB,
    config: Config,
    data: Split,
    records: list[dict[str, Any]],
    metrics: dict[str, Any],
    folder: Path,
) -> None:
    """All pictures of a run into ``folder``."""
    x, y = test_view(data.unseen_images, config.pixels), data.unseen_labels
    pictures.curves(records, metrics["kl_per_latent"], folder / "curves.png")
    pictures.latent_map(model, x, y, folder / "latents.png")
    if isinstance(model, VAE):
        pictures.sheets(model, x, y, metrics["kl_per_latent"], folder)
