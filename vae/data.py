"""From grey levels to what the model sees: stochastically binarised or real-valued pixels."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from shared.data.images import load_images
from shared.data.mnist import Digits, load_mnist
from shared.training.seeding import EVALUATION, generator

Pixels = Literal["binarised", "grey"]
TEST_SEED = 0  # the one fixed binarisation of the test digits that every figure is measured on


def read(root: str, images: str, device: torch.device | str = "cpu") -> Digits:
    """MNIST from the folder ``root``, or pictures from the folder ``images`` if it is named."""
    return load_images(Path(images), device) if images else load_mnist(Path(root), device)


def binarise(grey: Tensor, rng: torch.Generator) -> Tensor:
    """A fresh Bernoulli draw of every pixel with P(1) = grey/255 (Salakhutdinov and Murray 2008).

    Compares 15 random bits with an integer threshold, four pixels for one 64-bit draw: a third of
    the time of ``torch.bernoulli``. Probabilities are within 1.6e-5 of grey/255, and exact at 0
    and 255.

    Args:
        grey: [batch, pixels] uint8 on the generator's device, a multiple of 4 pixels.

    Returns:
        [batch, pixels] float32 of zeros and ones.
    """
    level = grey.to(torch.int16)
    threshold = level * 128 + (level + 1) // 2 - 2**14  # about grey/255 of [-2**14, 2**14]
    draws = torch.empty(grey.shape[0], grey.shape[1] // 4, dtype=torch.int64, device=grey.device)
    draws.random_(-(2**63), None, generator=rng)
    return ((draws.view(torch.int16) >> 1) < threshold).float()


def observe(grey: Tensor, pixels: Pixels, rng: torch.Generator) -> Tensor:
    """uint8 [batch, 784] -> float32 in {0, 1} (binarised) or [0, 1] (grey)."""
    return binarise(grey, rng) if pixels == "binarised" else grey.float() / 255


def test_view(grey: Tensor, pixels: Pixels) -> Tensor:
    """The test digits as every evaluation sees them: binarised once, with a fixed seed."""
    return observe(grey, pixels, generator(grey.device, TEST_SEED, EVALUATION))
