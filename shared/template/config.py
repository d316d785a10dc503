"""Options and presets. One dial: ``--beta``."""

from dataclasses import dataclass

from shared.config import Count, CountOrZero, NonNegative, Positive, RunConfig


@dataclass(frozen=True)
class Config(RunConfig):
    """Train a classifier of digits: cross-entropy + beta KL(answer || uniform), in nats."""

    beta: NonNegative = 0.1
    """Weight of KL(answer || uniform), which keeps the classifier from being too sure."""

    width: Count = 128
    """Units of a hidden layer (Pereyra et al. 2017: 1024)."""
    depth: Count = 1
    """Hidden layers (Pereyra et al. 2017: 2)."""

    epochs: Count = 5
    """Passes over the training digits."""
    batch_size: Count = 250
    """Digits per step over all processes together."""
    lr: Positive = 2e-3
    """Peak learning rate of Adam; linear warm-up, then a cosine to zero."""
    warmup: CountOrZero = 50
    """Steps of linear learning-rate warm-up."""
    clip: Positive = 1000.0
    """Largest gradient norm; longer gradients are scaled down to it."""

    validation: CountOrZero = 0
    """Training digits held out and evaluated instead of the test digits; for choosing options."""
    train_size: CountOrZero = 0
    """Number of training digits to use; 0: all."""
    test_size: CountOrZero = 0
    """Number of digits to evaluate; 0: all."""


PRESETS = {
    "smoke": Config(train_size=3000, test_size=500, epochs=3, batch_size=100, warmup=5),
    "default": Config(),
    "paper": Config(width=1024, depth=2, epochs=50),
}
