"""Train a beta-VAE, IWAE, beta-TC-VAE or VIB: ``python -m vae.train [preset] [--beta 4 ...]``."""

import torch
from torch import Tensor

from shared import cli
from shared.data.splits import split
from shared.processes.distributed import global_rows, global_sum, own_rows, world_size
from shared.processes.launch import need_whole_weights, start
from shared.run.run import Run
from shared.training.optim import muon_and_adam, set_rates, warmup_cosine
from shared.training.seeding import NOISE, generator, permutation
from vae import objective
from vae.config import PRESETS, Config
from vae.data import observe, read
from vae.evaluate import unseen_metrics
from vae.model import ARCHITECTURE, Output, build, hidden_matrices
from vae.objective import Loss
from vae.report import check_classes, print_run, write_outputs


def loss_of(
    config: Config, weight: float, x: Tensor, y: Tensor, out: Output, batch: int, n: int
) -> Loss:
    """The chosen objective on this process's rows of a global batch, of n training digits."""

    def mean(rows: Tensor) -> Tensor:
        return global_sum(rows.sum(0)) / batch

    match config.objective:
        case "elbo":
            return objective.elbo(x, out, mean, beta=weight, minimum=config.free_bits)
        case "iwae" | "dreg":
            return objective.iwae(x, out, mean, beta=weight, dreg=config.objective == "dreg")
        case "capacity":
            return objective.capacity(x, out, mean, nats=weight, gamma=config.gamma)
        case "tc":
            return objective.total_correlation(
                x, out, mean, beta=weight, gather=global_rows, dataset_size=n
            )
        case "vib":
            return objective.vib(y, out, mean, beta=weight)


def train(preset: str, config: Config) -> None:
    """The whole of training, from digits to the run folder's summary."""
    accelerator = start(config)
    device = accelerator.device
    data = split(
        read(config.data, config.images, device),
        config.validation,
        config.train_size,
        config.test_size,
    )
    check_classes(config, data)
    architecture = {name: getattr(config, name) for name in ARCHITECTURE}
    model = build(config.objective, **architecture).to(device)
    model.start_at(data.images.float().mean(0) / 255)
    if config.optimizer == "muon":
        need_whole_weights(accelerator, "--optimizer muon: takes")
    orthogonal = hidden_matrices(model) if config.optimizer == "muon" else []
    optimizers = muon_and_adam(model, orthogonal, config.muon_lr, config.lr)
    evaluated = build(config.objective, **architecture).to(device)
    model, *optimizers = accelerator.prepare(model, *optimizers)
    run = Run("vae", preset, config, accelerator)
    print_run(run, config, evaluated, data)
    run.attach(model, optimizers)

    n, size = len(data.images), config.batch_size
    steps = -(-n // size)  # per epoch
    while run.epoch < config.epochs:
        order = permutation(n, config.seed, run.epoch).to(device)
        for rows in run.batches(order, size):
            rng = generator(device, config.seed, NOISE, run.step)
            x = own_rows(observe(data.images.index_select(0, rows), config.pixels, rng))
            eps = torch.randn(
                config.samples, len(rows), config.latent, generator=rng, device=device
            )
            weight = config.weight_at(run.step, steps)
            set_rates(optimizers, warmup_cosine(run.step, config.warmup, steps * config.epochs))

            out = model(x, own_rows(eps, dim=1))
            loss = loss_of(config, weight, x, own_rows(data.labels[rows]), out, len(rows), n)
            run.refuse_non_finite(loss=loss.total)
            accelerator.backward(loss.total * world_size())  # DDP averages over processes
            norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
            run.refuse_non_finite(gradient_norm=norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            run.stepped(loss=loss.total, distortion=loss.distortion, rate=loss.rate.sum())

        metrics = run.end_epoch()
        weights = run.weights()
        if run.epoch % config.evaluate_every == 0 and weights:
            evaluated.load_state_dict(weights)
            metrics |= unseen_metrics(evaluated, data, config)
        run.report_epoch(metrics, config.epochs, ".2f")

    weights = run.weights()
    if run.close():
        evaluated.load_state_dict(weights)
        write_outputs(run, config, evaluated, data)


def main() -> None:
    train(*cli.read_config(PRESETS, "python -m vae.train"))


if __name__ == "__main__":
    cli.run(main, "vae.train")
