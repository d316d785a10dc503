"""Teachers and students: MLPs and a small convolutional network, pixels to class logits."""

import re
from itertools import pairwise

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from shared.processes.distributed import global_rows, own_rows, world_size

PIXELS = 28 * 28
CLASSES = 10
LAYERS = re.compile(r"(conv-[1-9]\d*(-[1-9]\d*){2}|[1-9]\d*(-[1-9]\d*)*)")


class Dropout(nn.Module):
    """Dropout whose mask is drawn for the global batch, so that N processes equal one."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, h: Tensor, rng: torch.Generator | None, batch: int) -> Tensor:
        """h [own rows, ...] of ``batch`` rows of all processes; without ``rng`` unchanged."""
        if rng is None or self.p == 0:
            return h
        u = torch.rand(batch, *h.shape[1:], generator=rng, device=h.device)
        return h * ((own_rows(u) >= self.p) / (1 - self.p))


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation (Ioffe and Szegedy 2015) by the statistics of the global batch."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # two to three times faster on CPUs
        if not self.training or world_size() == 1:
            return super().forward(x)
        wide = x.float()
        mass = wide.new_full((1,), x.numel() / x.shape[1])
        count = global_rows(mass).sum()
        mean = global_rows(wide.sum((0, 2, 3))[None]).sum(0) / count
        centred = wide - mean[:, None, None]
        var = global_rows(centred.square().sum((0, 2, 3))[None]).sum(0) / count
        with torch.no_grad():
            keep = 1 - (self.momentum or 0.0)
            self.running_mean.mul_(keep).add_((1 - keep) * mean)  # type: ignore[union-attr]
            unbiased = var * count / (count - 1)
            self.running_var.mul_(keep).add_((1 - keep) * unbiased)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class Classifier(nn.Module, PyTorchModelHubMixin, library_name="kl-zoo", license="apache-2.0"):
    """Class logits of pixels in [0, 1].

    Args:
        layers: hidden units of an MLP (``"800-800"``), or the channels of three 3 x 3 convolutions
            (``"conv-16-32-32"``: batch normalisation and ReLU after each, halving after two).
        dropout: share of hidden units dropped (of a convolutional network before its last layer).
        input_dropout: share of pixels dropped.
        classes: number of logits.

    Raises:
        ValueError: ``layers`` is of neither form.
    """

    def __init__(
        self,
        layers: str = "800-800",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        classes: int = CLASSES,
    ) -> None:
        super().__init__()
        if not LAYERS.fullmatch(layers):
            raise ValueError(f"layers {layers!r}: neither like 800-800 nor like conv-16-32-32")
        self.classes = classes
        self.input_dropout, self.dropout = Dropout(input_dropout), Dropout(dropout)
        if layers.startswith("conv"):
            self.features, size = convolutions(*map(int, layers.split("-")[1:]))
            widths: list[int] = []
        else:
            self.features, size = nn.Sequential(), PIXELS
            widths = [int(width) for width in layers.split("-")]
        sizes = [size, *widths, classes]
        self.linear = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor, rng: torch.Generator | None = None, batch: int = 0) -> Tensor:
        """x [own rows, pixels] -> [own rows, classes]; ``rng`` draws the global dropout."""
        h = self.features(self.input_dropout(x, rng, batch))
        if len(self.features):
            h = self.dropout(h, rng, batch)
        for layer in self.linear[:-1]:
            h = self.dropout(F.relu(layer(h)), rng, batch)
        logits: Tensor = self.linear[-1](h)
        return logits


def convolutions(a: int, b: int, c: int) -> tuple[nn.Sequential, int]:
    """28 x 28 -> 14 x 14 -> 7 x 7 with a, b, c channels, flat; and the number of features."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), BatchNorm(outputs), nn.ReLU()]

    layers = [
        nn.Unflatten(1, (1, 28, 28)),
        *block(1, a),
        nn.MaxPool2d(2),
        *block(a, b),
        nn.MaxPool2d(2),
        *block(b, c),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers), c * 49
