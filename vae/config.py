"""Options and presets of the VAE. One dial: ``--beta``."""

from dataclasses import dataclass
from typing import Literal

from shared.config import Count, CountOrZero, NonNegative, Positive, RunConfig
from shared.kl import cyclical, linear
from vae.data import Pixels
from vae.model import Activation, Network

Objective = Literal["elbo", "iwae", "dreg", "capacity", "tc", "vib"]


@dataclass(frozen=True)
class Config(RunConfig):
    """Train a VAE on MNIST: loss = distortion + beta * rate, in nats per digit."""

    beta: NonNegative = 1.0
    """Weight of the rate KL(q(z|x) || p(z)) against the distortion. 1 is the ELBO; Higgins et al.
    2017 use 4; of objective `vib` (Alemi et al. 2016) 1e-3; of `tc` the weight of TC alone."""
    objective: Objective = "elbo"
    """elbo: beta-VAE. iwae, dreg: importance-weighted bound with K samples, the latter with the
    doubly reparameterised gradient. capacity: rate held at --capacity. tc: beta-TC-VAE.
    vib: information bottleneck, a classifier on the latents."""
    pixels: Pixels = "binarised"
    """binarised: every pixel drawn at every step with P(1) = its grey level (Burda et al. 2015).
    grey: real values in [0, 1], under which the Bernoulli score is not a log-likelihood."""

    images: str = ""
    """Folder with a folder of pictures for each class, to train on instead of MNIST: made grey and
    shrunk to 28 x 28 pixels; one in ten is held out."""

    network: Network = "residual"
    """Encoder and decoder. mlp with 200-200 and tanh is Burda et al.'s."""
    latent: Count = 50
    """Dimensions of z (Burda et al.: 50; Alemi et al.: 256)."""
    width: Count = 200
    """Units of a hidden layer (Burda et al.: 200; Alemi et al.: 1024)."""
    depth: Count = 3
    """Residual blocks, or hidden layers of an mlp."""
    channels: Count = 16
    """Feature maps at full size of a conv network; twice as many at 7 x 7."""
    activation: Activation = "silu"
    """Nonlinearity (Burda et al.: tanh; Alemi et al.: relu)."""

    epochs: Count = 64
    """Passes over the training digits."""
    batch_size: Count = 500
    """Digits per step over all processes together (Burda et al.: 20; Alemi et al.: 100)."""
    lr: Positive = 4e-3
    """Peak learning rate of Adam; linear warm-up, then a cosine to zero."""
    optimizer: Literal["muon", "adam"] = "muon"
    """muon: orthogonalised momentum for the hidden matrices and Adam for the rest. FSDP and
    DeepSpeed shard matrices: use adam there."""
    muon_lr: Positive = 0.03
    """Peak learning rate of Muon."""
    warmup: CountOrZero = 200
    """Steps of linear learning-rate warm-up."""
    clip: Positive = 1000.0
    """Largest gradient norm; longer gradients are scaled down to it."""

    samples: Count = 1
    """Samples z per digit and step, K in the importance-weighted objectives."""
    anneal: Literal["none", "linear", "cyclical"] = "none"
    """How beta grows from 0: once over --anneal-epochs, or in every period of that length."""
    anneal_epochs: CountOrZero = 0
    """Length of the ramp (linear) or of a period, half of it ramp (cyclical), in epochs."""
    free_bits: NonNegative = 0.0
    """Nats per latent that cost nothing, on the batch mean (Kingma et al. 2016: 0.125 to 2)."""
    capacity: NonNegative = 25.0
    """Objective `capacity`: nats at the end of a linear growth from 0 over --anneal-epochs."""
    gamma: NonNegative = 30.0
    """Objective `capacity`: weight of |rate - capacity| (Burgess et al. 2018: 1000)."""

    validation: CountOrZero = 0
    """Training digits held out and evaluated instead of the test digits; for choosing options."""
    train_size: CountOrZero = 0
    """Number of training digits to use; 0: all."""
    test_size: CountOrZero = 0
    """Number of digits to evaluate; 0: all."""
    evaluate_every: Count = 5
    """Epochs between evaluations of the bound on unseen digits."""
    evaluation_samples: Count = 500
    """Importance samples per digit of the final log-likelihood (Burda et al.: 5000)."""

    def weight_at(self, step: int, steps_per_epoch: int) -> float:
        """beta at a step, or the capacity in nats for objective `capacity`."""
        end = self.capacity if self.objective == "capacity" else self.beta
        length = self.anneal_epochs * steps_per_epoch
        if self.anneal == "linear":
            return linear(step, 0.0, end, length)
        if self.anneal == "cyclical":
            return cyclical(step, end, length)
        return end

    def conflicts(self) -> list[str]:
        """Combinations without a meaning, each with what to change."""
        problems = []
        if self.anneal != "none" and self.anneal_epochs == 0:
            problems.append(f"--anneal {self.anneal}: needs --anneal-epochs >= 1")
        if self.objective in ("capacity", "tc", "elbo") and self.samples != 1:
            problems.append(f"--samples {self.samples}: objective {self.objective} takes 1")
        if self.free_bits and self.objective != "elbo":
            problems.append(f"--free-bits {self.free_bits}: only with --objective elbo")
        if self.validation >= 60_000:
            problems.append(
                f"--validation {self.validation}: must be below the 60000 training digits"
            )
        return problems


PRESETS = {
    "smoke": Config(
        epochs=3,
        train_size=5000,
        test_size=500,
        batch_size=100,
        width=64,
        depth=1,
        latent=8,
        warmup=10,
        evaluate_every=1,
        evaluation_samples=50,
    ),
    "default": Config(),
    "paper": Config(
        network="conv",
        width=256,
        objective="dreg",
        samples=50,
        batch_size=100,
        epochs=100,
        optimizer="adam",
        lr=2e-3,
        warmup=500,
        evaluate_every=2,
        evaluation_samples=5000,
    ),
    "vib": Config(
        objective="vib",
        beta=1e-3,
        pixels="grey",
        network="mlp",
        latent=256,
        width=1024,
        depth=2,
        activation="relu",
        epochs=24,
        batch_size=200,
        optimizer="adam",
        lr=1e-3,
    ),
    "vib-conv": Config(
        objective="vib",
        beta=1e-3,
        pixels="grey",
        network="conv",
        latent=256,
        width=128,
        epochs=12,
        batch_size=200,
        optimizer="adam",
        lr=2e-3,
    ),
}
