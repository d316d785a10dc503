"""Pictures of what a model learned, one PNG a function; digits are drawn as P(pixel = 1)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from shared.figures import COLOURS, save
from shared.training.seeding import EVALUATION, generator
from vae.metrics import encode_all
from vae.model import VAE, VIB


def tiles(images: Tensor, path: Path, title: str, labels: Sequence[str] = ()) -> None:
    """Draw images [rows, columns, 784] in [0, 1] as one grid, with a label before each row."""
    rows, columns = images.shape[:2]
    grid = images.reshape(rows, columns, 28, 28).permute(0, 2, 1, 3).reshape(rows * 28, -1)
    figure = Figure(figsize=(0.42 * columns + 0.9, 0.42 * rows + 0.4))
    axes = figure.add_subplot()
    axes.imshow(grid.cpu(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([28 * row + 14 for row in range(len(labels))], labels, fontsize=8)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=9, loc="left")
    save(figure, path)


@torch.no_grad()
def reconstructions(model: VAE, x: Tensor, path: Path) -> None:
    """Digits x [n >= 16, 784], the mean of their decodings and one decoded sample below each."""
    x = x[:16]
    mu, logvar = model.encode(x)
    rng = generator(x.device, 0, EVALUATION, 2)
    eps = torch.randn(mu.shape, generator=rng, device=x.device)
    z = torch.stack([mu, mu + eps * torch.exp(0.5 * logvar)])
    rows = torch.cat([x[None], model.decode(z).sigmoid()])
    tiles(rows, path, "Reconstructions of unseen digits", ["x", "z = mean", "z ~ q(z|x)"])


@torch.no_grad()
def prior_samples(model: VAE, path: Path, seed: int = 0) -> None:
    """Decodings of 8 x 16 draws from the prior N(0, 1)."""
    device = model.pixel_mean.device
    rng = generator(device, seed, EVALUATION, 3)
    latent = model.encode(model.pixel_mean[None])[0].shape[1]
    z = torch.randn(8, 16, latent, generator=rng, device=device)
    tiles(model.decode(z).sigmoid(), path, "Samples: z ~ N(0, 1), decoded")


@torch.no_grad()
def interpolation(model: VAE, x: Tensor, y: Tensor, path: Path) -> None:
    """Straight lines in latent space between digits of classes 0-1, 2-3, ... of x [n, 784]."""
    pairs = [(x[y == 2 * i], x[y == 2 * i + 1]) for i in range(5)]
    ends = [(a[0], b[0]) for a, b in pairs if len(a) and len(b)] or [(x[0], x[-1])]
    starts = model.encode(torch.stack([a for a, _ in ends]))[0]
    stops = model.encode(torch.stack([b for _, b in ends]))[0]
    t = torch.linspace(0, 1, 14, device=x.device)[:, None]
    z = starts[:, None] * (1 - t) + stops[:, None] * t
    tiles(model.decode(z).sigmoid(), path, "Interpolation between the means of two digits")


@torch.no_grad()
def traversals(model: VAE, x: Tensor, kl: Sequence[float], path: Path) -> None:
    """The eight latents of largest KL, each moved from -3 to 3 around one digit's mean."""
    top = sorted(range(len(kl)), key=lambda j: -kl[j])[:8]
    z = model.encode(x[:1])[0].repeat(len(top), 13, 1)
    for row, latent in enumerate(top):
        z[row, :, latent] = torch.linspace(-3, 3, 13, device=x.device)
    labels = [f"z{latent}: {kl[latent]:.2f} nats" for latent in top]
    tiles(model.decode(z).sigmoid(), path, "Traversals: one latent from -3 to 3", labels)


def curves(records: Sequence[dict[str, Any]], kl: Sequence[float], path: Path) -> None:
    """Loss and rate over epochs from metrics.jsonl, and the KL of each latent in falling order."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    epochs = range(1, len(records) + 1)
    left.plot(epochs, [r["loss"] for r in records], color=COLOURS[0], label="training loss")
    unseen = [
        (e, -r["unseen_bound"]) for e, r in zip(epochs, records, strict=True) if "unseen_bound" in r
    ]
    if unseen:
        left.plot(*zip(*unseen, strict=True), "o-", ms=3, color=COLOURS[1], label="-bound, unseen")
    best = min([r["loss"] for r in records] + [value for _, value in unseen])
    last = records[len(records) // 20]["loss"]  # the first twentieth is off the scale
    left.set(ylim=(best - 1, max(last, best + 2)), ylabel="nats per digit")
    left.legend(fontsize=8)
    middle.plot(epochs, [r["rate"] for r in records], color=COLOURS[2], label="rate")
    middle.set_ylabel("rate KL(q(z|x) || p(z)), nats")
    right.bar(range(len(kl)), sorted(kl, reverse=True), color=COLOURS[0])
    right.set(ylabel="nats per latent, unseen digits", xlabel="latents in falling order of KL")
    for axes in (left, middle):
        axes.set_xlabel("epoch")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def latent_map(model: VAE | VIB, x: Tensor, y: Tensor, path: Path) -> None:
    """First two principal components of the latent means of x, coloured by digit."""
    mu, _ = encode_all(model, x[:5000])
    centred = mu - mu.mean(0)
    _, _, v = torch.pca_lowrank(centred, q=2, center=False)
    points = (centred @ v).detach().cpu()
    figure = Figure(figsize=(4.6, 4))
    axes = figure.add_subplot()
    dots = axes.scatter(points[:, 0], points[:, 1], c=y[:5000].cpu(), s=2, cmap="tab10")
    figure.colorbar(dots, ticks=range(10), label="digit")
    axes.set_title("Latent means, first two principal components", fontsize=9, loc="left")
    save(figure, path)


def sheets(
    model: VAE, x: Tensor, y: Tensor, kl: Sequence[float], folder: Path, seed: int = 0
) -> None:
    """Reconstructions, prior samples, interpolation and traversals, four PNGs in ``folder``."""
    reconstructions(model, x, folder / "reconstructions.png")
    prior_samples(model, folder / "samples.png", seed)
    interpolation(model, x, y, folder / "interpolation.png")
    traversals(model, x, kl, folder / "traversals.png")


def rate_distortion(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Distortion against rate for each beta (Alemi et al. 2018), with lines of equal ELBO."""
    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    rates, distortions = [r["rate"] for r in rows], [r["distortion"] for r in rows]
    axes.plot(rates, distortions, "o-", color=COLOURS[0])
    for row in rows:
        point = (row["rate"], row["distortion"])
        axes.annotate(f"  beta {row['beta']:g}", point, fontsize=8, va="bottom")
    best = min(r + d for r, d in zip(rates, distortions, strict=True))
    span = (min(rates), max(rates))
    axes.plot(
        span,
        [best - r for r in span],
        "--",
        lw=1,
        color="#999999",
        label=f"rate + distortion = {best:.1f}, the best -ELBO",
    )
    axes.set(
        xlabel="rate KL(q(z|x) || p(z)), nats per digit",
        ylabel="distortion -E log p(x|z), nats per digit",
    )
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def bottleneck(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Test error and the bound on I(X; Z) against beta; beta 0 is drawn a decade to the left."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    smallest = min(row["beta"] for row in rows if row["beta"] > 0)
    ticks = {row["beta"] or smallest / 10: f"{row['beta']:g}" for row in rows}
    for network, colour in zip(
        dict.fromkeys(row["network"] for row in rows), COLOURS, strict=False
    ):
        network_rows = [row for row in rows if row["network"] == network]
        betas = [row["beta"] or smallest / 10 for row in network_rows]
        left.plot(
            betas, [r["error_percent"] for r in network_rows], "o-", color=colour, label=network
        )
        right.plot(betas, [r["rate"] for r in network_rows], "o-", color=colour, label=network)
    left.axhline(1.13, ls="--", lw=1, color="#777777", label="paper, beta 1e-3")
    left.axhline(1.38, ls=":", lw=1, color="#777777", label="paper, deterministic")
    left.set_ylabel("test error, %")
    left.margins(y=0.3)
    left.legend(fontsize=7, ncols=2, loc="upper left")
    right.set(yscale="log", ylabel="I(X; Z) at most (rate), nats")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.minorticks_off()
        axes.set_xlabel("beta")
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
