"""The lines at a run's start and the files at its end: models, pictures, table, summary."""

from typing import Any

import torch

from distillation import metrics, pictures
from distillation.config import Config, Role
from distillation.evaluate import evaluate, headline, outputs
from distillation.model import Classifier
from shared.data.splits import Split
from shared.run import report
from shared.run.folder import read_metrics
from shared.run.run import Run


def print_run(run: Run, role: Role, config: Config, model: Classifier, n: int) -> None:
    """Print what is trained, on what, and towards what."""
    recipe, size = config.recipe(role), config.batch_size
    steps = -(-n // size)
    towards = (
        "labels"
        if recipe.alpha == 0
        else (
            f"{recipe.alpha:g} x {config.objective} divergence at T = {config.temperature:g} "
            f"({config.targets} targets) + {1 - recipe.alpha:g} x labels"
        )
    )
    classes = "0123456789" if role == "teacher" else config.transfer
    report.print_setup(
        run,
        model=f"{role} {recipe.layers}, {sum(p.numel() for p in model.parameters()):,} "
        f"parameters, towards {towards}",
        data=f"{n:,} training digits, classes {classes}, moved by up to {recipe.jitter} px",
        batch=f"{report.shares(size)}; {steps} steps x {recipe.epochs} epochs = "
        f"{steps * recipe.epochs:,} steps",
    )


@torch.no_grad()
def unseen_errors(model: Classifier, data: Split) -> int:
    """Errors on the unseen digits."""
    return metrics.errors(outputs(model, data.unseen_images), data.unseen_labels)


def write_network(
    run: Run, role: Role, config: Config, model: Classifier, teacher: Classifier | None, data: Split
) -> dict[str, Any]:
    """Evaluate a trained network and write its model/ folder; returns its metrics."""
    seconds = round(run.elapsed(), 1)
    about = {"preset": run.preset, "role": role} | report.training_settings(run.preset, config)
    result = evaluate(model, teacher, data, about) | {"training_seconds": seconds}
    about |= {"metrics": result}
    report.write_model(run.folder / "model", model.save_pretrained, card(about), training=about)
    return result


def write_outputs(
    run: Run,
    config: Config,
    teacher: Classifier | None,
    data: Split,
    results: dict[str, dict[str, Any]],
) -> None:
    """Write pictures/ and summary.json of the whole run and print the table of its networks."""
    folders = {name: run.folder / name for name in results if (run.folder / name).is_dir()}
    folders[config.roles()[-1]] = run.folder
    records = {name: read_metrics(path) for name, path in folders.items()}
    with report.pictures_folder(run) as folder:
        pictures.curves(records, folder / "curves.png")
        if teacher is not None:
            logits = outputs(teacher, data.unseen_images)
            pictures.dark_knowledge(
                data.unseen_images,
                data.unseen_labels,
                logits,
                config.temperature,
                folder / "dark_knowledge.png",
            )
    recipe = config.recipe(config.roles()[-1])._asdict()
    report.finish_run(
        run,
        {"steps": run.step, "recipe": recipe, "unseen": results},
        f"\n{headline(results)}\n\npictures in {folder}, model in {run.folder / 'model'}",
    )


def card(about: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained, what it reached, how to load it."""
    role, config, result = about["role"], Config.stored(about["config"]), about["metrics"]
    recipe = config.recipe(role)
    options = recipe._asdict()
    if recipe.alpha:
        names = "temperature objective targets target_radius transfer".split()
        options |= {name: getattr(config, name) for name in names}
    return report.model_card(
        f"{role.capitalize()} on MNIST, preset `{about['preset']}` of KL Zoo",
        ["mnist", "knowledge-distillation"],
        result=f"On {result['digits']:,} unseen digits:\n\n```\n{headline({role: result})}\n```",
        options=options | {"batch size": config.batch_size, "seed": config.seed},
        code="from distillation.model import Classifier\n\n"
        'model = Classifier.from_pretrained("path/to/this/folder")  # pixels [n, 784] in [0, 1] '
        "-> logits",
        note="Limits: made for MNIST; the metrics say nothing about other images.",
    )
