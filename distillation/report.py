"""What a run says at its start and leaves at its end: models, pictures, table, summary."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from distillation import metrics, pictures
from distillation.config import Config, Role
from distillation.evaluate import evaluate, headline, outputs
from distillation.model import Classifier
from shared.cli import with_resume_cleared
from shared.data.splits import Split
from shared.errors import full_disk_is_a_user_error
from shared.processes.distributed import world_size
from shared.run.checkpoint import write_folder
from shared.run.folder import read_metrics, write_json
from shared.run.report import push
from shared.run.run import Run


def introduce(run: Run, role: Role, config: Config, model: Classifier, n: int) -> None:
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
    run.say(
        f"run      {run.folder}\n"
        f"model    {role} {recipe.layers}, {sum(p.numel() for p in model.parameters()):,} "
        f"parameters, towards {towards}\n"
        f"data     {n:,} training digits, classes {classes}, moved by up to {recipe.jitter} px\n"
        f"batch    {size} = {world_size()} process(es) x {size / world_size():g}; "
        f"{steps} steps x {recipe.epochs} epochs = {steps * recipe.epochs:,} steps"
    )


@torch.no_grad()
def unseen_errors(model: Classifier, data: Split) -> int:
    return metrics.errors(outputs(model, data.unseen_images), data.unseen_labels)


def finish_network(
    run: Run, role: Role, config: Config, model: Classifier, teacher: Classifier | None, data: Split
) -> dict[str, Any]:
    """Evaluate a trained network and write its model/ folder; returns its metrics."""
    seconds = round(run.elapsed(), 1)
    about = {"preset": run.preset, "role": role, "config": asdict(with_resume_cleared(config))}
    found = evaluate(model, teacher, data, about) | {"training_seconds": seconds}
    save_model(model, run.folder / "model", about | {"metrics": found})
    return found


def finish_run(
    run: Run,
    config: Config,
    teacher: Classifier | None,
    data: Split,
    found: dict[str, dict[str, Any]],
) -> None:
    """Pictures, table and summary.json of the whole run."""
    folder = run.folder / "pictures"
    folders = {name: run.folder / name for name in found if (run.folder / name).is_dir()}
    folders[config.roles()[-1]] = run.folder
    records = {name: read_metrics(path) for name, path in folders.items()}
    with full_disk_is_a_user_error(folder):
        folder.mkdir(exist_ok=True)
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
    summary = {"steps": run.step, "recipe": recipe, "unseen": found}
    write_json(run.folder / "summary.json", summary)
    run.say(f"\n{headline(found)}\n\npictures in {folder}, model in {run.folder / 'model'}")
    if config.push_to_hub:
        run.say(f"uploaded to {push(run.folder / 'model', config.push_to_hub)}")


def save_model(model: Classifier, path: Path, about: dict[str, Any]) -> None:
    """A folder that ``from_pretrained`` and ``distillation.evaluate`` read, with its card."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        write_json(folder / "training.json", about)
        (folder / "README.md").write_text(card(about))

    write_folder(path, write)


def card(about: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained, what it reached, how to load it."""
    role, config, found = about["role"], Config.stored(about["config"]), about["metrics"]
    recipe = config.recipe(role)
    options = "\n".join(f"| {name} | {value} |" for name, value in recipe._asdict().items())
    if recipe.alpha:
        told = ("temperature", "objective", "targets", "target_radius", "transfer")
        options += "\n" + "\n".join(f"| {name} | {getattr(config, name)} |" for name in told)
    return f"""---
license: apache-2.0
library_name: kl-zoo
tags: [mnist, knowledge-distillation]
---
# {role.capitalize()} on MNIST, preset `{about["preset"]}` of KL Zoo

On {found["digits"]:,} unseen digits:

```
{headline({role: found})}
```

| option | value |
|---|---|
{options}
| batch size | {config.batch_size} |
| seed | {config.seed} |

```python
from distillation.model import Classifier

model = Classifier.from_pretrained("path/to/this/folder")  # pixels [n, 784] in [0, 1] -> logits
```

Limits: made for MNIST; the metrics say nothing about other images.
"""
