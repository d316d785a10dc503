"""Train the classifier: ``python -m shared.template.train [preset] [--beta 0.1 ...]``."""

from pathlib import Path

import torch

from shared import cli
from shared.data.mnist import load_mnist
from shared.data.splits import split
from shared.processes.distributed import global_sum, own_rows, world_size
from shared.processes.launch import start
from shared.run.run import Run
from shared.template import objective
from shared.template.config import PRESETS, Config
from shared.template.evaluate import unseen_metrics
from shared.template.model import ARCHITECTURE, Classifier
from shared.template.report import print_run, write_outputs
from shared.training.optim import muon_and_adam, set_rates, warmup_cosine
from shared.training.seeding import permutation


def train(preset: str, config: Config) -> None:
    """Train from the digits to the summary of the run folder."""
    accelerator = start(config)
    device = accelerator.device
    digits = load_mnist(Path(config.data), device)
    data = split(digits, config.validation, config.train_size, config.test_size)
    architecture = {name: getattr(config, name) for name in ARCHITECTURE}
    torch.manual_seed(config.seed)
    model, evaluated = Classifier(**architecture), Classifier(**architecture).to(device)
    optimizers = muon_and_adam(model, [], 0.0, config.lr)  # Adam alone
    model, *optimizers = accelerator.prepare(model, *optimizers)
    run = Run("template", preset, config, accelerator)
    print_run(run, config, evaluated, data)
    run.attach(model, optimizers)

    n, size = len(data.images), config.batch_size
    steps = -(-n // size) * config.epochs
    while run.epoch < config.epochs:
        order = permutation(n, config.seed, run.epoch).to(device)
        for rows in run.batches(order, size):
            set_rates(optimizers, warmup_cosine(run.step, config.warmup, steps))
            x, labels = own_rows(data.images[rows]).float() / 255, own_rows(data.labels[rows])

            logits = model(x).float()
            cross_entropy = global_sum(objective.cross_entropy(logits, labels).sum()) / len(rows)
            kl_to_uniform = global_sum(objective.kl_to_uniform(logits).sum()) / len(rows)
            loss = cross_entropy + config.beta * kl_to_uniform
            run.refuse_non_finite(loss=loss)
            accelerator.backward(loss * world_size())  # DDP averages over processes
            norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
            run.refuse_non_finite(gradient_norm=norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            run.stepped(loss=loss, cross_entropy=cross_entropy, kl_to_uniform=kl_to_uniform)

        metrics = run.end_epoch()
        if weights := run.weights():
            evaluated.load_state_dict(weights)
            unseen = unseen_metrics(evaluated, data)
            metrics |= {f"unseen_{name}": value for name, value in unseen.items()}
        run.report_epoch(metrics, config.epochs, ".4g")

    weights = run.weights()
    if run.close():
        evaluated.load_state_dict(weights)
        write_outputs(run, config, evaluated, data)


def main() -> None:
    train(*cli.read_config(PRESETS, "python -m shared.template.train"))


if __name__ == "__main__":
    cli.run(main, "shared.template.train")
