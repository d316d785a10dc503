from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from trpo_ppo.network import Network, _Network, activations, outputs


def reference(network):
    """The same network from torch's own layers."""
    parts, at, sizes = [], 0, network.sizes
    for i, o in pairwise(sizes):
        layer = nn.Linear(i, o).to(network.flat.dtype)
        layer.weight.data = network.flat.data[at : at + i * o].view(i, o).T.clone()
        layer.bias.data = network.flat.data[at + i * o : at + i * o + o].clone()
        at += i * o + o
        parts += [layer, nn.Tanh()]
    return nn.Sequential(*parts[:-1])


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = Network((3, 5, 4, 2), last_gain=0.5).double()
    made.flat.data += 0.1 * torch.randn_like(made.flat)
    return made


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_values_and_gradients_are_torchs(network, batch):
    x, other = torch.randn(batch, 3, dtype=torch.float64), reference(network)
    grad = torch.randn(batch, 2, dtype=torch.float64)
    y = network(x)
    assert torch.allclose(y, other(x), atol=1e-14)
    assert torch.allclose(outputs(x, network.flat, network.sizes), other(x), atol=1e-14)
    assert np.allclose(activations(x.numpy(), network.arrays())[-1], other(x).detach(), atol=1e-14)
    (ours,) = torch.autograd.grad(y, network.flat, grad)
    theirs = torch.autograd.grad(other(x), list(other.parameters()), grad)
    at = 0
    for g in theirs:
        g = g.T if g.dim() == 2 else g
        assert torch.allclose(ours[at : at + g.numel()].view(g.shape), g, atol=1e-13)
        at += g.numel()
    assert at == len(ours)


def test_first_and_second_derivatives_by_differences(network):
    x = torch.randn(4, 3, dtype=torch.float64)

    def function(flat):
        return _Network.apply(x, flat, network.sizes)

    assert gradcheck(function, network.flat)
    assert gradgradcheck(function, network.flat)


def test_the_start_is_orthogonal():
    network = Network((8, 8, 8, 3), last_gain=0.01)
    *hidden, (last, bias) = network.arrays()
    for weights, biases in hidden:
        assert np.allclose(weights @ weights.T, 2 * np.eye(8), atol=1e-5)
        assert not biases.any()
    assert np.allclose(last.T @ last, 1e-4 * np.eye(3), atol=1e-8)
    assert not bias.any()
