"""Train a beta-VAE, IWAE, beta-TC-VAE or VIB: ``python -m vae.train [preset] [--beta 4 ...]``."""

from pathlib import Path

import torch
from torch import Tensor, nn

from shared import cli
from shared.data.mnist import load_mnist
from shared.distributed import global_rows, global_sum, own_rows, world_size
from shared.launch import start
from shared.optim import muon_and_adam, set_rates, warmup_cosine
from shared.run import Run
from shared.seeding import NOISE, generator, permutation
from vae import objective
from vae.config import PRESETS, Config
from vae.data import observe, split
from vae.model import VIB, VAE, Output, hidden_matrices
from vae.evaluate import quick_bound


def build(config: Config) -> VAE | VIB:
    """The untrained model of a configuration."""
    kind = VIB if config.objective == "vib" else VAE
    return kind(config.network, config.latent, config.width, config.depth, config.channels,
                config.activation)  # fmt: skip


def loss_terms(config: Config, beta: float, x: Tensor, y: Tensor, out: Output, batch: int, n: int):
    """The chosen objective on this process's rows of a global batch, of n training digits."""

    def mean(rows: Tensor) -> Tensor:
        return global_sum(rows.sum(0)) / batch

    match config.objective:
        case "elbo":
            return objective.elbo(x, out, mean, beta=beta, minimum=config.free_bits)
        case "iwae" | "dreg":
            return objective.iwae(x, out, mean, beta=beta, dreg=config.objective == "dreg")
        case "capacity":
            return objective.capacity(x, out, mean, nats=beta, gamma=config.gamma)
        case "tc":
            return objective.total_correlation(
                x, out, mean, beta=beta, gather=global_rows, dataset_size=n
            )
        case "vib":
            return objective.vib(y, out, mean, beta=beta)


def train(preset: str, config: Config) -> None:
    accelerator = start(config)
    device = accelerator.device
    data = split(load_mnist(Path(config.data), device), config.validation,
                 config.train_size, config.test_size)
    model = build(config).to(device)
    model.start_at(data.images.float().mean(0) / 255)
    optimizers = muon_and_adam(
        model, hidden_matrices(model) if config.optimizer=='muon' else [], config.muon_lr, config.lr)
    model, *optimizers = accelerator.prepare(model, *optimizers)
    run = Run("vae", preset, config, accelerator)
    run.attach(model, optimizers)

    n, size = len(data.images), config.batch_size
    steps = -(-n // size)
    while run.step < steps * config.epochs:
        epoch = run.step // steps
        order = permutation(n, config.seed, epoch).to(device)
        for rows in run.batches(order, size):
            rng = generator(device, config.seed, NOISE, run.step)
            x = own_rows(observe(data.images[rows], config.pixels, rng))
            y = own_rows(data.labels[rows])
            eps = torch.randn(config.samples, len(rows), config.latent, generator=rng, device=device)
            beta = config.dial_at(run.step, steps)

            out = model(x, own_rows(eps, dim=1))
            terms = loss_terms(config, beta, x, y, out, len(rows), n)
            accelerator.backward(terms.loss * world_size())
            norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
            run.refuse_non_finite(terms.loss, norm)
            set_rates(optimizers, warmup_cosine(run.step, config.warmup, steps * config.epochs))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            run.stepped(loss=terms.loss, distortion=terms.distortion, rate=terms.rate.sum())
        means = run.end_epoch()
        if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.epochs:
            means |= quick_bound(accelerator.unwrap_model(model), data, config)
        run.record(means)
        run.say(f"epoch {epoch+1} {run.elapsed():.0f}s " + " ".join(f"{k} {v:.3f}" for k,v in means.items()))
        if (epoch + 1) % config.checkpoint_every == 0: run.save()


def main() -> None:
    preset, config = cli.read_config(PRESETS, "python -m vae.train")
    train(preset, config)


if __name__ == "__main__":
    cli.run(main, "vae.train")
