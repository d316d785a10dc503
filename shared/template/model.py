"""The network: pixels to class logits."""

from itertools import pairwise

import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

PIXELS = 28 * 28
CLASSES = 10
ARCHITECTURE = ("width", "depth")  # options that the weights depend on


class Classifier(nn.Module, PyTorchModelHubMixin, library_name="kl-zoo", license="apache-2.0"):
    """A multilayer perceptron of ``depth`` hidden layers of ``width`` units each."""

    def __init__(self, width: int = 128, depth: int = 1) -> None:
        super().__init__()
        sizes = [PIXELS, *[width] * depth, CLASSES]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] [batch, 784] -> logits [batch, classes]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        logits: Tensor = self.layers[-1](x)
        return logits
