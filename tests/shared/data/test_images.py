"""Pictures of every mode that Pillow opens: right, or refused by name."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.data.images import SIDE, grey, load_images
from shared.errors import UserError

RAMP = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
RIGHT = torch.from_numpy(
    np.array(Image.fromarray(RAMP).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
).flatten()


def saved(picture: Image.Image, folder: Path, name: str, **options: object) -> torch.Tensor:
    """The picture, as it is read from a file of this name in a folder of classes."""
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True, exist_ok=True)
    for number in range(40):
        plain = Image.fromarray(RAMP[:28, :28])
        plain.save(folder / "b" / f"{number}.png")
        picture.save(folder / "a" / f"{number}{name}", **options)
    digits = load_images(folder)
    return digits.train_images[digits.train_labels == 0][0]


def with_alpha(mode: str) -> Image.Image:
    """Black ink: a ramp of opacity, on a transparent ground."""
    alpha = Image.fromarray(255 - RAMP)
    colour = Image.new(mode.rstrip("A"), alpha.size, 0)
    colour.putalpha(alpha)
    return colour


PICTURES = {
    "L": (Image.fromarray(RAMP), ".png", {}),
    "16-bit PNG": (Image.fromarray(RAMP.astype(np.uint16) * 257), ".png", {}),
    "16-bit TIFF": (Image.fromarray(RAMP.astype(np.uint16) * 257), ".tif", {}),
    "big-endian TIFF": (Image.fromarray((RAMP.astype(np.uint16) * 257).astype(">u2")), ".tif", {}),
    "float TIFF": (Image.fromarray(RAMP.astype(np.float32) / 255), ".tiff", {}),
    "RGB": (Image.merge("RGB", [Image.fromarray(RAMP)] * 3), ".png", {}),
    "palette": (Image.fromarray(RAMP).convert("P"), ".gif", {}),
    "CMYK": (Image.merge("RGB", [Image.fromarray(RAMP)] * 3).convert("CMYK"), ".tif", {}),
    "LA": (with_alpha("LA"), ".png", {}),
    "RGBA": (with_alpha("RGBA"), ".png", {}),
    "WebP with alpha": (with_alpha("RGBA"), ".webp", {"lossless": True}),
    "upper case": (Image.fromarray(RAMP), ".PNG", {}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_ramp_is_a_ramp(name: str, tmp_path: Path) -> None:
    picture, suffix, options = PICTURES[name]
    found = saved(picture, tmp_path, suffix, **options)
    assert (found.int() - RIGHT.int()).abs().max() <= 2


MODES = {*Image.MODES, "I;16L", "I;16B", "La", "RGBa", "PA"}
REFUSED = {"I", "LAB"}


@pytest.mark.parametrize("mode", sorted(MODES - REFUSED))
def test_every_mode_becomes_grey(mode: str) -> None:
    found = grey(Image.new(mode, (3, 5)))
    assert (found.mode, found.size) == ("L", (3, 5))


@pytest.mark.parametrize("mode", sorted(REFUSED))
def test_modes_without_a_white_are_refused_by_name(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode}"):
        grey(Image.new(mode, (3, 5)))


def test_a_palette_with_a_transparent_colour_lies_on_white(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((64, 256), np.uint8)).convert("P")
    found = saved(picture, tmp_path, ".png", transparency=picture.getpixel((0, 0)))
    assert (found == 255).all()


def test_pictures_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees to be seen
    found = saved(Image.fromarray(RAMP), tmp_path, ".jpg", exif=exif, quality=100)
    right = Image.fromarray(RAMP).transpose(Image.Transpose.ROTATE_270)
    expected = np.array(right.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=int)
    assert np.abs(found.view(SIDE, SIDE).numpy() - expected).max() <= 4


def test_hidden_folders_are_no_classes_and_hidden_files_no_pictures(tmp_path: Path) -> None:
    saved(Image.fromarray(RAMP), tmp_path, ".png")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    Image.fromarray(RAMP).save(tmp_path / ".ipynb_checkpoints" / "0.png")
    (tmp_path / "a" / "._0.png").write_bytes(b"what macOS keeps beside a picture")
    labels = load_images(tmp_path).train_labels
    assert labels.unique().tolist() == [0, 1]


BROKEN = {
    "float pixels above 1": lambda p: Image.fromarray(RAMP.astype(np.float32)).save(p, "TIFF"),
    "32-bit pixels": lambda p: Image.fromarray(RAMP.astype(np.int32)).save(p, "TIFF"),
    "a damaged header": lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40),
    "no picture": lambda p: p.write_text("text"),
    "nothing": lambda p: p.write_bytes(b""),
    "half a picture": lambda p: (
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8)).save(p),
        p.write_bytes(p.read_bytes()[:4000]),
    ),
    "too many pixels": lambda p: Image.new("1", (20_000, 20_000)).save(p),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_read_is_named_in_one_line(what: str, tmp_path: Path) -> None:
    saved(Image.fromarray(RAMP), tmp_path, ".png")
    file = tmp_path / "a" / "bad.tif" if "pixels" in what else tmp_path / "a" / "bad.png"
    if what == "too many pixels":
        file = tmp_path / "a" / "bad.png"
    BROKEN[what](file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            UserError, match=r"bad\.(png|tif): cannot be read as a picture"
        ) as error:
            load_images(tmp_path)
    assert "\n" not in str(error.value)
