"""What a run says at its start and leaves at its end: model folder, picture, summary."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from shared import figures
from shared.cli import with_resume_cleared
from shared.data.splits import Split
from shared.errors import full_disk_is_a_user_error
from shared.processes.distributed import world_size
from shared.run.checkpoint import write_folder
from shared.run.folder import read_metrics, write_json
from shared.run.hub import push
from shared.run.run import Run
from shared.template.config import Config
from shared.template.evaluate import headline, unseen_metrics
from shared.template.model import Classifier


def introduce(run: Run, config: Config, model: Classifier, data: Split) -> None:
    """Print the batch arithmetic, the number of parameters and the units."""
    n, size = len(data.images), config.batch_size
    steps = -(-n // size)
    run.say(
        f"run      {run.folder}\n"
        f"model    {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"beta {config.beta:g}\n"
        f"data     {n:,} training and {len(data.unseen_images):,} unseen digits\n"
        f"batch    {size} = {world_size()} process(es) x {size / world_size():g}; "
        f"{steps} steps x {config.epochs} epochs = {steps * config.epochs:,} steps\n"
        f"units    nats per digit, unless said"
    )


def finish(run: Run, config: Config, model: Classifier, data: Split) -> None:
    """Evaluate the trained model and write model/, pictures/ and summary.json of the run."""
    seconds, metrics = round(run.elapsed(), 1), unseen_metrics(model, data)
    about = {"preset": run.preset, "config": asdict(with_resume_cleared(config))}
    save_model(model, run.folder / "model", about, metrics)
    with full_disk_is_a_user_error(run.folder / "pictures"):
        (run.folder / "pictures").mkdir(exist_ok=True)
        draw(read_metrics(run.folder), run.folder / "pictures" / "curves.png")
    summary = {"steps": run.step, "training_seconds": seconds, "unseen": metrics}
    write_json(run.folder / "summary.json", summary)
    run.say(
        f"\n{headline(metrics)}\n\ntrained in {seconds:.0f} s; picture in "
        f"{run.folder / 'pictures'}, model in {run.folder / 'model'}"
    )
    if config.push_to_hub:
        run.say(f"uploaded to {push(run.folder / 'model', config.push_to_hub)}")


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Cross-entropy and KL on the unseen digits after every epoch."""
    figure = Figure(figsize=(7, 3))
    titles = {"cross_entropy": "cross-entropy, nats", "kl_to_uniform": "KL(answer ‖ uniform), nats"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        values = [record[f"unseen_{name}"] for record in records]
        axes.plot(range(1, len(values) + 1), values, ".-", color=figures.COLOURS[0])
        axes.set(title=title, xlabel="epochs")
    figures.save(figure, path)


def save_model(
    model: Classifier, path: Path, about: dict[str, Any], metrics: dict[str, Any]
) -> None:
    """A folder that ``from_pretrained`` and the evaluation read, with its card."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        write_json(folder / "training.json", about)
        write_json(folder / "metrics.json", metrics)
        (folder / "README.md").write_text(card(about, metrics))

    write_folder(path, write)


def card(about: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained, what it reached, how to load it."""
    told = ("beta", "width", "depth", "epochs", "batch_size", "lr", "seed")
    options = "\n".join(f"| {name} | {about['config'][name]} |" for name in told)
    return f"""---
license: apache-2.0
library_name: kl-zoo
tags: [mnist]
---
# Classifier of digits, preset `{about["preset"]}` of KL Zoo

On {metrics["digits"]:,} unseen digits:

```
{headline(metrics)}
```

| option | value |
|---|---|
{options}

```python
from shared.template.model import Classifier

model = Classifier.from_pretrained("path/to/this/folder")  # pixels [n, 784] in [0, 1] -> logits
```
"""
