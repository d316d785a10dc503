"""Pictures from a folder as grey images of 28 x 28 pixels, in the form of MNIST."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from shared.data.mnist import Digits
from shared.errors import UserError, first_line

SIDE = 28
HELD_OUT = 10  # one picture in ten, by a hash of its name
KINDS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def load_images(folder: Path, device: torch.device | str = "cpu") -> Digits:
    """Read ``folder/CLASS/*.png`` and other pictures, made grey and squeezed to 28 x 28.

    They stand as their EXIF orientation says; what is transparent is laid on white. Hidden folders
    and files are passed over.

    Labels number the class folders in alphabetical order. Whether a picture is held out depends
    only on its name and class.

    Raises:
        UserError: no such folder, fewer than two classes, a file that cannot be read as a picture,
            or a class without pictures to train on; it is named.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: not a folder")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and _is_visible(path))
    if len(classes) < 2:
        raise UserError(
            f"--images {folder}: holds {len(classes)} folders of pictures; it needs one "
            f"for each class, 2 at least"
        )
    parts: tuple[list[tuple[torch.Tensor, int]], list[tuple[torch.Tensor, int]]] = ([], [])
    for label, path in enumerate(classes):
        pictures = (p for p in path.iterdir() if p.suffix.lower() in KINDS and _is_visible(p))
        for file in sorted(pictures):
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


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _read(file: Path) -> torch.Tensor:
    try:
        with warnings.catch_warnings(), Image.open(file) as picture:
            warnings.simplefilter("ignore")  # large pictures and odd metadata
            upright = ImageOps.exif_transpose(picture)
            small = grey(upright, picture.format).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(small)).flatten()
    except Exception as error:  # Pillow's readers raise what their formats lead to
        raise UserError(f"{file}: cannot be read as a picture ({first_line(error)})") from error


def grey(picture: Image.Image, kind: str | None = None, ground: int = 255) -> Image.Image:
    """A picture of any of Pillow's modes in 256 levels of grey.

    16 bits are scaled to 8, numbers between 0 and 1 likewise; what is transparent is laid on
    ``ground``. ``kind`` is the format of its file: Pillow gives 16 bits of some as 32.

    Raises:
        ValueError: the mode does not say what is white, or Pillow cannot make it grey.
    """
    mode = picture.mode
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):
        values = np.asarray(picture, dtype=np.float64)
        see_through = values == picture.info.get("transparency", -1)
        return _scaled(np.where(see_through, ground / 255, values / 65_535))
    if mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        if not ((values >= 0) & (values <= 1)).all():  # NaN is not
            raise ValueError("mode F: floating-point pixels must lie between 0 and 1")
        return _scaled(values)
    if mode in ("I", "LAB"):
        raise ValueError(
            f"mode {mode}: pixels of this kind are not read; save it with 8 or 16 bits"
        )
    if picture.has_transparency_data:
        through = (picture.convert("LA") if mode == "La" else picture).convert("RGBA")
        whole = Image.new("RGBA", through.size, (ground, ground, ground, 255))
        picture = Image.alpha_composite(whole, through)
    return picture.convert("RGB").convert("L") if mode == "HSV" else picture.convert("L")


def _scaled(values: np.ndarray) -> Image.Image:
    """Values between 0 and 1."""
    return Image.fromarray(np.round(255 * values).astype(np.uint8))
