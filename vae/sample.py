"""Draw what a VAE learned: ``python -m vae.sample [--model FOLDER] [--out FOLDER]``."""

from dataclasses import dataclass
from pathlib import Path

from shared import cli
from shared.config import CountOrZero
from shared.errors import UserError
from shared.kl import kl_standard_normal
from vae.data import read, test_view
from vae.evaluate import PRETRAINED, load
from vae.metrics import encode_all
from vae.model import VAE
from vae.pictures import sheets


@dataclass(frozen=True)
class Options:
    """Reconstructions, prior samples, interpolation and latent traversals as PNG."""

    model: str = PRETRAINED
    """Model folder or run folder."""
    out: str = "runs/vae-samples"
    """Folder for the pictures."""
    seed: CountOrZero = 0
    """Seed of the prior samples."""
    data: str = "data"
    """Folder of the data sets."""


def main() -> None:
    options = cli.read_options(Options, "vae.sample")
    model, about = load(options.model, "cpu")
    if not isinstance(model, VAE):
        raise UserError(f"--model {options.model}: is a VIB, which has no decoder to sample from")
    digits = read(options.data, about["config"].get("images", ""))
    x = test_view(digits.test_images, about["config"]["pixels"])
    kl = kl_standard_normal(*encode_all(model, x)).mean(0).tolist()
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    sheets(model, x, digits.test_labels, kl, folder, options.seed)
    print(f"four pictures in {folder}")


if __name__ == "__main__":
    cli.run(main, "vae.sample")
