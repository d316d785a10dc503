"""What a training run says at its start and leaves at its end: model folder, pictures, summary."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from shared.cli import with_resume_cleared
from shared.data.splits import Split
from shared.errors import UserError, full_disk_is_a_user_error
from shared.kl import kl_standard_normal
from shared.processes.distributed import world_size
from shared.run.checkpoint import write_folder
from shared.run.folder import read_metrics, write_json
from shared.run.report import push
from shared.run.run import Run
from vae import pictures
from vae.config import Config
from vae.data import test_view
from vae.evaluate import evaluate, headline
from vae.metrics import bound, encode_all
from vae.model import CLASSES, VAE, VIB


def check_classes(config: Config, data: Split) -> None:
    """UserError if a VIB is to tell more classes apart than it has answers."""
    classes = int(data.labels.max()) + 1
    if config.objective == "vib" and classes > CLASSES:
        raise UserError(
            f"--images {config.images}: has {classes} classes, objective vib at most {CLASSES}"
        )


def introduce(run: Run, config: Config, model: VAE | VIB, data: Split) -> None:
    """Print the batch arithmetic, the number of parameters and the units."""
    n, size = len(data.images), config.batch_size
    steps = -(-n // size)
    parameters = sum(p.numel() for p in model.parameters())
    unseen = "validation" if config.validation else "test"
    run.say(
        f"run      {run.folder}\n"
        f"model    {config.network} {type(model).__name__}, {parameters:,} parameters, "
        f"{config.latent} latents, objective {config.objective}, beta {config.beta:g}\n"
        f"data     {n:,} training and {len(data.unseen_images):,} {unseen} digits, "
        f"pixels {config.pixels}"
        + ("" if config.pixels == "binarised" else ": Bernoulli scores, not log-likelihoods")
        + f"\nbatch    {size} = {world_size()} process(es) x {size / world_size():g}; "
        f"{steps} steps x {config.epochs} epochs = {steps * config.epochs:,} steps\n"
        f"units    nats per digit, unless said"
    )


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


def finish(run: Run, config: Config, model: VAE | VIB, data: Split) -> None:
    """Evaluate the trained model and write model/, pictures/ and summary.json of the run."""
    run.say("evaluating ...")
    records = read_metrics(run.folder)
    about = {"preset": run.preset, "config": asdict(with_resume_cleared(config))}
    seconds = round(run.elapsed(), 1)
    metrics = evaluate(model, config.pixels, data, config.evaluation_samples)
    save_model(model, run.folder / "model", about, metrics)
    with full_disk_is_a_user_error(run.folder / "pictures"):
        draw(model, config, data, records, metrics, run.folder / "pictures")
    last = {key: value for key, value in records[-1].items() if key != "step"}
    summary = {"steps": run.step, "training_seconds": seconds, "training": last, "unseen": metrics}
    write_json(run.folder / "summary.json", summary)
    run.say(
        f"\n{headline(metrics)}\n\ntrained in {seconds:.0f} s, all in {run.elapsed():.0f} s; "
        f"pictures in {run.folder / 'pictures'}, model in {run.folder / 'model'}"
    )
    if config.push_to_hub:
        run.say(f"uploaded to {push(run.folder / 'model', config.push_to_hub)}")


def save_model(
    model: VAE | VIB, path: Path, about: dict[str, Any], metrics: dict[str, Any]
) -> None:
    """A folder that ``from_pretrained`` and ``vae.evaluate`` read, with its card."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        write_json(folder / "training.json", about)
        write_json(folder / "metrics.json", metrics)
        (folder / "README.md").write_text(card(model, about, metrics))

    write_folder(path, write)


def card(model: VAE | VIB, about: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained, what it reached, how to load it."""
    kind, config = type(model).__name__, about["config"]
    told = tuple(
        """
        objective beta pixels network latent width depth channels activation epochs batch_size
        samples seed
    """.split()
    )
    options = "\n".join(f"| {name} | {config[name]} |" for name in told)
    return f"""---
license: apache-2.0
library_name: kl-zoo
tags: [mnist, {kind.lower()}, variational-inference]
---
# {kind} on MNIST, preset `{about["preset"]}` of KL Zoo

Trained on {"binarised" if config["pixels"] == "binarised" else "grey"} 28 x 28 digits. On
{metrics["digits"]:,} unseen digits:

```
{headline(metrics)}
```

| option | value |
|---|---|
{options}

```python
from vae.model import {kind}

model = {kind}.from_pretrained("path/to/this/folder")
```

Limits: made for MNIST; the metrics say nothing about other images.
"""


def draw(
    model: VAE | VIB,
    config: Config,
    data: Split,
    records: list[dict[str, Any]],
    metrics: dict[str, Any],
    folder: Path,
) -> None:
    """All pictures of a run into ``folder``."""
    folder.mkdir(exist_ok=True)
    x, y = test_view(data.unseen_images, config.pixels), data.unseen_labels
    pictures.curves(records, metrics["kl_per_latent"], folder / "curves.png")
    pictures.latent_map(model, x, y, folder / "latents.png")
    if isinstance(model, VAE):
        pictures.sheets(model, x, y, metrics["kl_per_latent"], folder)
