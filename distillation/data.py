"""Digits from grey levels to a network's input: shifts, pixels in [0, 1], transfer sets."""

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.data.splits import Split
from shared.errors import UserError

SIDE = 28
PAD = 2  # the largest shift in pixels


def shifts(radius: int) -> list[tuple[int, int]]:
    """Every (down, right) of at most ``radius`` pixels, (2 radius + 1)**2 in all."""
    span = range(-radius, radius + 1)
    return [(down, right) for down in span for right in span]


def padded(images: Tensor) -> Tensor:
    """[n, 784] -> [n, 32 * 32] with a black border as wide as the largest shift."""
    square = images.unflatten(1, (SIDE, SIDE))
    return F.pad(square, (PAD, PAD, PAD, PAD)).flatten(1)


def window(down: Tensor, right: Tensor) -> Tensor:
    """Indices of a shifted digit's pixels in a padded one: shifts [...] -> [..., 784]."""
    side = SIDE + 2 * PAD
    rows = torch.arange(SIDE, device=down.device)
    pixels = (rows[:, None] * side + rows).flatten()
    return pixels + ((PAD - down) * side + PAD - right)[..., None]


def shift(images: Tensor, down: int, right: int) -> Tensor:
    """All images [n, 784] moved by the same number of pixels; the edges become black."""
    moved = window(torch.tensor(down), torch.tensor(right)).to(images.device)
    return padded(images)[:, moved]


def jittered(
    images: Tensor, rows: Tensor, radius: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A batch, each digit moved by a random shift of :func:`shifts`.

    Args:
        images: of :func:`padded`, [n, 1024].
        rows: which of them, [batch].

    Returns:
        pixels in [0, 1] [batch, 784], and the number of each digit's shift [batch].
    """
    grid = torch.tensor(shifts(radius), device=images.device)
    chosen = torch.randint(len(grid), (len(rows),), generator=rng, device=images.device)
    moved = window(*grid[chosen].unbind(1))
    return images[rows].gather(1, moved).float() / 255, chosen


def transfer_set(data: Split, digits: str) -> Split:
    """Only the training digits of the classes named in ``digits``; all unseen ones stay.

    Raises:
        UserError: no training digit is of these classes.
    """
    kept = torch.isin(data.labels, torch.tensor([int(digit) for digit in digits]).to(data.labels))
    if not kept.any():
        raise UserError(f"--transfer {digits}: none of the training digits is of these classes")
    return data._replace(images=data.images[kept], labels=data.labels[kept])
