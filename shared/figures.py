"""Colours of all pictures, and saving one."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from shared.errors import full_disk_is_a_user_error

matplotlib.use("Agg")
COLOURS: Sequence[str] = ("#3b6ea5", "#d1702b", "#4b8b3b", "#8b4b8b", "#b03a48", "#4d9a9a")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, without a window system; a full disk is a UserError."""
    with full_disk_is_a_user_error(path):
        figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
