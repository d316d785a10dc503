"""Pictures from a folder as grey images of 28 x 28 pixels, in the form of MNIST."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from shared.data.mnist import Digits
from shared.errors import UserError

SIDE = 28
HELD_OUT = 10  # one picture in ten, by a hash of its name
KINDS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def load_images(folder: Path, device: torch.device | str = "cpu") -> Digits:
    """Read ``folder/CLASS/*.png`` and other pictures, made grey and squeezed to 28 x 28.

    Labels number the class folders in alphabetical order. Whether a picture is held out depends
    only on its name and class.

    Raises:
        UserError: no such folder, fewer than two classes, a file that cannot be read as a picture,
            or a class without pictures to train on; it is named.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: not a folder")
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(classes) < 2:
        raise UserError(
            f"--images {folder}: holds {len(classes)} folders of pictures; it needs one "
            f"for each class, 2 at least"
        )
    parts: tuple[list[tuple[torch.Tensor, int]], list[tuple[torch.Tensor, int]]] = ([], [])
    for label, path in enumerate(classes):
        for file in sorted(p for p in path.iterdir() if p.suffix.lower() in KINDS):
            digest = hashlib.sha256(f"{path.name}/{file.name}".encode()).digest()
            parts[digest[0] % HELD_OUT == 0].append((_read(file), label))
    trained, unseen = parts
    missing = {*range(len(classes))} - {label for _, label in trained}
    if missing or not unseen:
        where = classes[min(missing)] if missing else folder
        raise UserError(f"--images {where}: too few pictures; one in {HELD_OUT} is held out")
    columns = [column for part in (trained, unseen) for column in zip(*part, strict=True)]
    images, labels, unseen_images, unseen_labels = columns
    return Digits(
        torch.stack(images).to(device),
        torch.tensor(labels, device=device),
        torch.stack(unseen_images).to(device),
        torch.tensor(unseen_labels, device=device),
    )


def _read(file: Path) -> torch.Tensor:
    try:
        with Image.open(file) as picture:
            grey = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(grey)).flatten()
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{file}: cannot be read as a picture ({error})") from error
