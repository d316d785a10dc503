"""Encoders, decoders, the VAE and the VIB classifier. Shapes: k samples, batch, latent, pixels."""

from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

PIXELS = 28 * 28
CLASSES = 10
Network = Literal["residual", "mlp", "conv"]
Activation = Literal["silu", "relu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "tanh": nn.Tanh}


class Output(NamedTuple):
    """A forward pass: q(z|x) = N(mu, exp(logvar)), samples z of it, and what they decode to."""

    mu: Tensor  # [batch, latent]
    logvar: Tensor  # [batch, latent]
    z: Tensor  # [k, batch, latent]
    logits: Tensor  # [k, batch, pixels], or [k, batch, classes] of the VIB


class Residual(nn.Module):
    """h + body(h)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, h: Tensor) -> Tensor:
        return h + self.body(h)


def mlp(
    inputs: int, outputs: int, width: int, depth: int, act: str, residual: bool
) -> nn.Sequential:
    """``depth`` hidden layers; ``residual``: a stem, then ``depth`` blocks h + act(W h)."""
    new = ACTIVATIONS[act]
    layers: list[nn.Module] = [nn.Linear(inputs, width), new()]
    for _ in range(depth if residual else depth - 1):
        body = nn.Sequential(nn.Linear(width, width), new())
        layers += [Residual(body)] if residual else list(body)
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class SpaceToDepth(nn.Module):
    """[batch, c, 2h, 2w] -> [batch, 4c, h, w]; nn.PixelUnshuffle refuses an empty batch."""

    def forward(self, x: Tensor) -> Tensor:
        batch, c, h, w = x.shape
        cells = x.reshape(batch, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return cells.reshape(batch, 4 * c, h // 2, w // 2)


class DepthToSpace(nn.Module):
    """The inverse of :class:`SpaceToDepth` (Shi et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        batch, c, h, w = x.shape
        cells = x.reshape(batch, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
        return cells.reshape(batch, c // 4, 2 * h, 2 * w)


def conv_encoder(outputs: int, channels: int, width: int, act: str) -> nn.Sequential:
    """28 -> 14 -> 7 by space-to-depth, a residual 3 x 3 block at each size, then two layers.

    Nothing is computed at 28 x 28, where a CPU would spend most of its time.
    """
    new = ACTIVATIONS[act]
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        SpaceToDepth(),
        nn.Conv2d(4, channels, 3, padding=1),
        new(),
        Residual(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), new())),
        SpaceToDepth(),
        nn.Conv2d(4 * channels, 2 * channels, 3, padding=1),
        new(),
        Residual(nn.Sequential(nn.Conv2d(2 * channels, 2 * channels, 3, padding=1), new())),
        nn.Flatten(),
        nn.Linear(2 * channels * 49, width),
        new(),
        nn.Linear(width, outputs),
    )


def conv_decoder(inputs: int, channels: int, width: int, act: str) -> nn.Sequential:
    """The encoder mirrored: 7 -> 14 -> 28 by depth-to-space."""
    new = ACTIVATIONS[act]
    return nn.Sequential(
        nn.Linear(inputs, width),
        new(),
        nn.Linear(width, 2 * channels * 49),
        new(),
        nn.Unflatten(1, (2 * channels, 7, 7)),
        Residual(nn.Sequential(nn.Conv2d(2 * channels, 2 * channels, 3, padding=1), new())),
        nn.Conv2d(2 * channels, 4 * channels, 3, padding=1),
        DepthToSpace(),
        new(),
        Residual(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), new())),
        nn.Conv2d(channels, 4, 3, padding=1),
        DepthToSpace(),
        nn.Flatten(),
    )


def build_encoder(
    network: Network, outputs: int, width: int, depth: int, channels: int, act: str
) -> nn.Sequential:
    if network == "conv":
        return conv_encoder(outputs, channels, width, act)
    return mlp(PIXELS, outputs, width, depth, act, residual=network == "residual")


def build_decoder(
    network: Network, inputs: int, width: int, depth: int, channels: int, act: str
) -> nn.Sequential:
    if network == "conv":
        return conv_decoder(inputs, channels, width, act)
    return mlp(inputs, PIXELS, width, depth, act, residual=network == "residual")


def xavier_(module: nn.Module) -> None:
    """Glorot-uniform weights and zero biases, as in Burda et al. 2015, section 5."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class _Encoding(nn.Module):
    """Centred encoder and reparameterised sample, common to VAE and VIB."""

    encoder: nn.Sequential
    pixel_mean: Tensor

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q(z|x) of pixels in [0, 1]: x [batch, pixels] -> mu, logvar, each [batch, latent]."""
        mu, logvar = self.encoder(x - self.pixel_mean).chunk(2, dim=-1)
        return mu.contiguous(), logvar.contiguous()  # FSDP takes no views for outputs

    def forward(self, x: Tensor, eps: Tensor) -> Output:
        """x [batch, pixels] and standard normal noise eps [k, batch, latent]."""
        mu, logvar = self.encode(x)
        z = mu + eps * torch.exp(0.5 * logvar)  # Kingma and Welling 2013, section 2.4
        return Output(mu, logvar, z, self.decode(z))

    def decode(self, z: Tensor) -> Tensor:
        raise NotImplementedError


class VAE(_Encoding, PyTorchModelHubMixin, library_name="kl-zoo", license="apache-2.0"):
    """p(z) = N(0, 1), q(z|x) = N(mu, exp(logvar)), p(x|z) = Bernoulli(sigmoid(logits))."""

    def __init__(
        self,
        network: Network = "residual",
        latent: int = 50,
        width: int = 200,
        depth: int = 3,
        channels: int = 16,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(network, 2 * latent, width, depth, channels, activation)
        self.decoder = build_decoder(network, latent, width, depth, channels, activation)
        self.pixel_bias = nn.Parameter(torch.zeros(PIXELS))
        self.register_buffer("pixel_mean", torch.zeros(PIXELS))
        self.apply(xavier_)

    def start_at(self, pixel_mean: Tensor) -> None:
        """Centre the input and start the decoder at the mean digit, [pixels] in [0, 1]."""
        self.pixel_mean.copy_(pixel_mean)
        with torch.no_grad():
            self.pixel_bias.copy_(pixel_mean.clamp(1e-3, 1 - 1e-3).logit())

    def decode(self, z: Tensor) -> Tensor:
        """Log-odds of the pixels: z [k, batch, latent] -> [k, batch, pixels]."""
        logits: Tensor = self.decoder(z.flatten(0, -2)) + self.pixel_bias
        return logits.unflatten(0, z.shape[:-1])


class VIB(_Encoding, PyTorchModelHubMixin, library_name="kl-zoo", license="apache-2.0"):
    """q(z|x) = N(mu, exp(logvar)) and a linear classifier on z (Alemi et al. 2016, section 4.1)."""

    def __init__(
        self,
        network: Network = "mlp",
        latent: int = 256,
        width: int = 1024,
        depth: int = 2,
        channels: int = 16,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(network, 2 * latent, width, depth, channels, activation)
        self.classifier = nn.Linear(latent, CLASSES)
        self.register_buffer("pixel_mean", torch.zeros(PIXELS))
        self.apply(xavier_)

    def start_at(self, pixel_mean: Tensor) -> None:
        """Centre the input; pixel_mean [pixels] in [0, 1]."""
        self.pixel_mean.copy_(pixel_mean)

    def decode(self, z: Tensor) -> Tensor:
        """Class logits: z [k, batch, latent] -> [k, batch, classes]."""
        logits: Tensor = self.classifier(z)
        return logits


ARCHITECTURE = ("network", "latent", "width", "depth", "channels", "activation")


def build(objective: str, **architecture: Any) -> VAE | VIB:
    """The untrained model for an objective; ``architecture`` has the names above."""
    return VIB(**architecture) if objective == "vib" else VAE(**architecture)


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Weights for Muon (Jordan et al. 2024): linear layers but each network's first and last."""
    matrices = []
    for network in (getattr(model, name, None) for name in ("encoder", "decoder")):
        if network is not None:
            linear = [layer.weight for layer in network.modules() if isinstance(layer, nn.Linear)]
            matrices += linear[1:-1]
    return matrices
