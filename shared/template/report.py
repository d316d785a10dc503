"""The lines at a run's start and the files at its end: model folder, picture, summary."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from shared import figures
from shared.data.splits import Split
from shared.run import report
from shared.run.folder import read_metrics
from shared.run.run import Run
from shared.template.config import Config
from shared.template.evaluate import headline, unseen_metrics
from shared.template.model import Classifier


def print_run(run: Run, config: Config, model: Classifier, data: Split) -> None:
    """Print the batch arithmetic, the number of parameters and the units."""
    n, size = len(data.images), config.batch_size
    steps = -(-n // size)
    report.print_setup(
        run,
        model=f"{sum(p.numel() for p in model.parameters()):,} parameters, beta {config.beta:g}",
        data=f"{n:,} training and {len(data.unseen_images):,} unseen digits",
        batch=f"{report.shares(size)}; {steps} steps x {config.epochs} epochs = "
        f"{steps * config.epochs:,} steps",
        units="nats per digit, unless said",
    )


def write_outputs(run: Run, config: Config, model: Classifier, data: Split) -> None:
    """Evaluate the trained model and write model/, pictures/ and summary.json of the run."""
    seconds, metrics = round(run.elapsed(), 1), unseen_metrics(model, data)
    settings = report.training_settings(run.preset, config)
    text = card(settings, metrics)
    report.write_trained(run, model.save_pretrained, text, settings, metrics)
    with report.pictures_folder(run) as pictures:
        draw(read_metrics(run.folder), pictures / "curves.png")
    report.finish_run(
        run,
        {"steps": run.step, "training_seconds": seconds, "unseen": metrics},
        f"\n{headline(metrics)}\n\ntrained in {seconds:.0f} s; picture in {pictures}, "
        f"model in {run.folder / 'model'}",
    )


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Cross-entropy and KL on the unseen digits after every epoch."""
    figure = Figure(figsize=(7, 3))
    titles = {"cross_entropy": "cross-entropy, nats", "kl_to_uniform": "KL(answer ‖ uniform), nats"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        values = [record[f"unseen_{name}"] for record in records]
        axes.plot(range(1, len(values) + 1), values, ".-", color=figures.COLOURS[0])
        axes.set(title=title, xlabel="epochs")
    figures.save(figure, path)


def card(settings: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained, what it reached, how to load it."""
    names = "beta width depth epochs batch_size lr seed".split()
    return report.model_card(
        f"Classifier of digits, preset `{settings['preset']}` of KL Zoo",
        ["mnist"],
        result=f"On {metrics['digits']:,} unseen digits:\n\n```\n{headline(metrics)}\n```",
        options={name: settings["config"][name] for name in names},
        code="from shared.template.model import Classifier\n\n"
        'model = Classifier.from_pretrained("path/to/this/folder")  # pixels [n, 784] in [0, 1] '
        "-> logits",
    )
