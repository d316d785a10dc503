"""A tanh network on one flat parameter, computed with NumPy on the CPU.

Two layers of 64 units are so little work that autograd's bookkeeping and torch's tanh would take
most of an update, and torch's call overhead most of acting. So the network is a few NumPy
functions, and one autograd node made of them, twice differentiable, which TRPO needs.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]
Layers = Sequence[tuple[Array, Array]]
# A gradient that is not finite is refused where it would be applied; NumPy need not warn too.
_QUIET = np.errstate(invalid="ignore", over="ignore")


def layers(flat: Any, sizes: Sequence[int]) -> Iterator[tuple[Any, Any]]:
    """(weights [inputs, outputs], biases [outputs]) of each layer: views of a tensor or array."""
    start = 0
    for inputs, outputs in pairwise(sizes):
        weights = flat[start : start + inputs * outputs].reshape(inputs, outputs)
        start += inputs * outputs
        yield weights, flat[start : start + outputs]
        start += outputs


@_QUIET
def activations(x: Array, network: Layers) -> list[Array]:
    """Input, hidden layers and output of ``network``: each [batch, units]."""
    values = [x]
    for i, (weights, biases) in enumerate(network):
        h = values[-1] @ weights
        h += biases
        values.append(np.tanh(h, out=h) if i < len(network) - 1 else h)
    return values


def outputs(x: Tensor, flat: Tensor, sizes: Sequence[int]) -> Tensor:
    """The same in torch, differentiable without end: x [batch, inputs] -> [batch, outputs]."""
    *hidden, (last, last_bias) = layers(flat, sizes)
    for weights, biases in hidden:
        x = torch.tanh(x @ weights + biases)
    return x @ last + last_bias


@_QUIET
def gradient(values: Sequence[Array], network: Layers, delta: Array, out: Array) -> None:
    """Backpropagation: the gradient of sum(output * delta) with respect to the parameters.

    Args:
        values: of ``activations``.
        delta: [batch, outputs].
        out: flat array that receives it.
    """
    sizes = [value.shape[1] for value in values]
    parts = list(layers(out, sizes))
    for i in range(len(parts) - 1, -1, -1):
        h = values[i]
        np.matmul(h.T, delta, out=parts[i][0])
        np.sum(delta, axis=0, out=parts[i][1])
        if i:
            delta = delta @ network[i][0].T
            delta *= 1 - h * h


class _Network(torch.autograd.Function):
    """Forward and backward pass of all layers; the input gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, flat: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.network = list(layers(flat.detach().numpy(), sizes))
        ctx.values = activations(x.numpy(), ctx.network)
        ctx.save_for_backward(x, flat)
        ctx.sizes = sizes
        return torch.from_numpy(ctx.values[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        x, flat = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will be differentiated: autograd's own graph
            y = outputs(x, flat, ctx.sizes)
            return None, torch.autograd.grad(y, flat, grad, create_graph=True)[0], None
        result = torch.empty_like(flat)
        gradient(ctx.values, ctx.network, grad.numpy(), result.numpy())
        return None, result, None


class Network(nn.Module):
    """Fully connected layers with tanh between them: [batch, sizes[0]] -> [batch, sizes[-1]]."""

    def __init__(self, sizes: Sequence[int], last_gain: float) -> None:
        """Orthogonal weights of gain sqrt(2), ``last_gain`` in the last layer; zero biases."""
        super().__init__()
        self.sizes = tuple(sizes)
        self.flat = nn.Parameter(torch.zeros(sum((i + 1) * o for i, o in pairwise(sizes))))
        with torch.no_grad():
            for i, (weights, _) in enumerate(layers(self.flat, self.sizes)):
                gain = last_gain if i == len(self.sizes) - 2 else 2**0.5
                nn.init.orthogonal_(weights.T, gain)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _Network.apply(x, self.flat, self.sizes)
        return result

    def run(self, x: Tensor) -> list[Array]:
        """All layers' values, without autograd; ``backward`` takes them."""
        return activations(x.numpy(), self.arrays())

    def backward(self, values: Sequence[Array], delta: Tensor) -> Tensor:
        """Gradient of sum(output * delta), delta [batch, outputs], with respect to ``flat``."""
        result = torch.empty_like(self.flat)
        gradient(values, self.arrays(), delta.numpy(), result.numpy())
        return result

    def arrays(self) -> Layers:
        """The layers as NumPy views: they follow the parameter."""
        return list(layers(self.flat.detach().numpy(), self.sizes))
