"""Errors for people: one line, a documented exit code, no traceback."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

BAD_INPUT = 2  # options, files, data, a full disk, a non-finite loss
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_SPACE_MESSAGES = ("os error 28", "os error 27", "inline_container")


class UserError(Exception):
    """A problem that the user can solve; ``shared.cli.run`` prints it and exits with 2."""


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived and the state has been saved; exit code 128 + the signal."""

    def __init__(self, signum: int, saved: Path) -> None:
        super().__init__(f"interrupted; everything is saved, go on with --resume {saved}")
        self.exit_code = 128 + signum


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(word: str, names: Iterable[str]) -> str:
    """``, did you mean NAME?`` with the name closest to a mistyped word; empty if none is close."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.65)
    return f", did you mean {close[0]}?" if close else ""


@contextmanager
def full_disk_is_a_user_error(what: Path) -> Iterator[None]:
    """Turn "no space left" into a UserError that names ``what``, a file or folder.

    The operating system, safetensors and torch.save each report it in their own way.
    """
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in _NO_SPACE
        if full or any(words in str(error) for words in _NO_SPACE_MESSAGES):
            raise UserError(
                f"{what}: cannot be written, the disk is full or over its quota; "
                f"what was saved before is intact"
            ) from error
        raise
