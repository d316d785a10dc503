"""What a training run prints at its start and writes at its end."""

from pathlib import Path
from typing import Any

import torch

from distillation import metrics, pictures
from distillation.config import Config, Role
from distillation.evaluate import evaluate, headline, outputs
from distillation.model import Classifier
from shared.data.splits import Split
from shared.run.folder import read_metrics
from shared.run.report import (
    finish_run,
    model_card,
    pictures_folder,
    print_setup,
    shares,
    training_settings,
    write_model,
)
from shared.run.run import Run


def print_run(run: Run, role: Role, config: Config, model: Classifier, n: int) -> None:
    """Print which network is trained on which digits, its targets and the batch arithmetic."""
    recipe, steps = config.recipe(role), -(-n // config.batch_size)
    targets = (
        f"{recipe.alpha:g} x {config.objective} divergence at T = {config.temperature:g} "
        f"({config.targets} targets) + {1 - recipe.alpha:g} x labels"
    )
    classes = "0123456789" if role == "teacher" else config.transfer
    print_setup(
        run,
        model=f"{role} {recipe.layers}, {sum(p.numel() for p in model.parameters()):,} "
        f"parameters, towards {targets if recipe.alpha else 'labels'}",
        data=f"{n:,} training digits, classes {classes}, moved by up to {recipe.jitter} px",
        batch=f"{shares(config.batch_size)}; {steps} steps x {recipe.epochs} epochs = "
        f"{steps * recipe.epochs:,} steps",
    )


@torch.no_grad()
def unseen_errors(model: Classifier, data: Split) -> int:
    return metrics.errors(outputs(model, data.unseen_images), data.unseen_labels)


def write_network(
    run: Run, role: Role, config: Config, model: Classifier, teacher: Classifier | None, data: Split
) -> dict[str, Any]:
    """Evaluate a trained network and write its model/ folder; returns its metrics."""
    seconds = round(run.elapsed(), 1)
    settings = training_settings(run.preset, config)
    settings = {"preset": settings["preset"], "role": role, "config": settings["config"]}
    result = evaluate(model, teacher, data, settings) | {"training_seconds": seconds}
    save_model(model, run.folder / "model", settings | {"metrics": result})
    return result


def write_outputs(
    run: Run,
    config: Config,
    teacher: Classifier | None,
    data: Split,
    networks: dict[str, dict[str, Any]],
) -> None:
    """Write pictures/ and summary.json of the whole run, from the metrics of its networks."""
    paths = {name: run.folder / name for name in networks if (run.folder / name).is_dir()}
    paths[config.roles()[-1]] = run.folder
    records = {name: read_metrics(path) for name, path in paths.items()}
    with pictures_folder(run) as folder:
        pictures.curves(records, folder / "curves.png")
        if teacher is not None:
            pictures.dark_knowledge(
                data.unseen_images,
                data.unseen_labels,
                outputs(teacher, data.unseen_images),
                config.temperature,
                folder / "dark_knowledge.png",
            )
    recipe = config.recipe(config.roles()[-1])._asdict()
    finish_run(
        run,
        {"steps": run.step, "recipe": recipe, "unseen": networks},
        f"\n{headline(networks)}\n\npictures in {folder}, model in {run.folder / 'model'}",
    )


def save_model(model: Classifier, path: Path, settings: dict[str, Any]) -> None:
    """Write a folder that ``from_pretrained`` and ``distillation.evaluate`` read, with its card.

    ``settings`` holds preset, role, config and metrics.
    """
    write_model(path, model.save_pretrained, card(settings), training=settings)


def card(settings: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained, what it reached, how to load it."""
    role, config, result = settings["role"], Config.stored(settings["config"]), settings["metrics"]
    options = config.recipe(role)._asdict()
    if options["alpha"]:
        names = "temperature objective targets target_radius transfer".split()
        options |= {name: getattr(config, name) for name in names}
    return model_card(
        f"{role.capitalize()} on MNIST, preset `{settings['preset']}` of KL Zoo",
        ["mnist", "knowledge-distillation"],
        result=f"On {result['digits']:,} unseen digits:\n\n```\n{headline({role: result})}\n```",
        options=options | {"batch size": config.batch_size, "seed": config.seed},
        code="from distillation.model import Classifier\n\n"
        'model = Classifier.from_pretrained("path/to/this/folder")  # pixels [n, 784] in [0, 1] '
        "-> logits",
        note="Limits: made for MNIST; the metrics say nothing about other images.",
    )
