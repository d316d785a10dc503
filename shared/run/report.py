"""The lines a run prints at its start, and the model folder, pictures and summary of its end."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from shared.cli import with_resume_cleared
from shared.config import RunConfig
from shared.errors import UserError, first_line, full_disk_is_a_user_error
from shared.processes.distributed import world_size
from shared.run.checkpoint import write_folder
from shared.run.environment import describe
from shared.run.folder import read_metrics, write_json
from shared.run.run import Run


def print_setup(run: Run, **lines: str) -> None:
    """Print the run's folder and a line for each name: model, data, batch, units."""
    rows = {"run": str(run.folder)} | lines
    run.say("\n".join(f"{name:<9}{line}" for name, line in rows.items()))


def shares(size: int) -> str:
    """A global batch as the processes divide it, such as ``500 = 2 process(es) x 250``."""
    return f"{size} = {world_size()} process(es) x {size / world_size():g}"


def training_settings(preset: str, config: RunConfig) -> dict[str, Any]:
    """The content of training.json in a model folder: the preset and every option."""
    return {"preset": preset, "config": asdict(with_resume_cleared(config))}


def write_model(path: Path, save: Callable[[Path], object], card: str, **documents: Any) -> None:
    """Write a model folder as a whole: weights, ``NAME.json`` of each document, and the card.

    Args:
        save: writes the weights and their configuration into a folder.

    Raises:
        UserError: the disk is full; nothing of the folder remains.
    """

    def write(folder: Path) -> None:
        save(folder)
        for name, document in documents.items():
            write_json(folder / f"{name}.json", document)
        (folder / "README.md").write_text(card)

    write_folder(path, write)


def write_trained(
    run: Run,
    save: Callable[[Path], object],
    card: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """The model folder of a run: ``write_model`` with its settings and metrics."""
    write_model(run.folder / "model", save, card, training=settings, metrics=metrics)


def model_card(
    title: str,
    tags: Iterable[str],
    *,
    result: str,
    options: Mapping[str, Any],
    code: str,
    note: str = "",
    library: str = "kl-zoo",
) -> str:
    """The card of a model folder in the Hub's format.

    Args:
        result: metrics of the model, as Markdown.
        options: options of its training, each a row of a table.
        code: Python that loads it.
        note: limits of its use.
    """
    rows = "\n".join(f"| {name} | {value} |" for name, value in options.items())
    return f"""---
license: apache-2.0
library_name: {library}
tags: [{", ".join(tags)}]
---
# {title}

{result}

| option | value |
|---|---|
{rows}

```python
{code}
```
""" + (f"\n{note}\n" if note else "")


@contextmanager
def pictures_folder(run: Run) -> Iterator[Path]:
    """The run's folder of pictures, created if missing; a full disk is a UserError."""
    folder = run.folder / "pictures"
    with full_disk_is_a_user_error(folder):
        folder.mkdir(exist_ok=True)
        yield folder


def training_summary(run: Run, seconds: float) -> dict[str, Any]:
    """The part of summary.json about the training, which took ``seconds``."""
    last = {key: value for key, value in read_metrics(run.folder)[-1].items() if key != "step"}
    return {"steps": run.step, "training_seconds": seconds, "training": last}


def finish_run(run: Run, summary: Mapping[str, Any], result: str) -> None:
    """Write summary.json, print the result, and upload the model if ``--push-to-hub`` asks for it.

    Raises:
        UserError: the disk is full, or the Hub refused the upload.
    """
    write_json(run.folder / "summary.json", dict(summary))
    run.say(result)
    if run.config.push_to_hub:
        run.say(f"uploaded to {push(run.folder / 'model', run.config.push_to_hub)}")


def write_evaluation(path: str, model: str, **figures: Any) -> None:
    """Write the metrics of an evaluated model, with the environment; nothing if ``path`` is "".

    Raises:
        UserError: the disk is full.
    """
    if path:
        write_json(Path(path), {"model": model, **figures, "environment": describe()})


def push(folder: Path, repository: str) -> str:
    """Upload a model folder, creating the repository if needed; returns its address.

    Raises:
        UserError: no network, no token or no permission; the folder stays as it is.
    """
    try:
        api = HfApi()
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # the Hub, its HTTP client and the network each raise their own
        reason = first_line(error)
        raise UserError(
            f"--push-to-hub {repository}: not uploaded ({reason}); the model is safe in {folder}"
        ) from error
    return str(url)
