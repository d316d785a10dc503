"""Errors that are for people: one line, a documented exit code, no traceback."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

BAD_INPUT = 2  # options, files, data, a full disk, a non-finite loss
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UserError(Exception):
    """Something the user can put right; ``shared.cli.run`` prints it and exits with 2."""


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived and the state has been saved; exit code 128 + the signal."""

    def __init__(self, signum: int, saved: Path) -> None:
        super().__init__(f"interrupted; everything is saved, go on with --resume {saved}")
        self.exit_code = 128 + signum


def first_line(error: Exception) -> str:
    """What an error says, for a message of one line; its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(word: str, names: Iterable[str]) -> str:
    """``, did you mean NAME?`` for the name most like a mistyped word; empty if none is like it."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.65)
    return f", did you mean {close[0]}?" if close else ""


@contextmanager
def full_disk_is_a_user_error(what: Path) -> Iterator[None]:
    """Turn "no space left" (from the OS or from safetensors) into one line that names ``what``."""
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        text = str(error)
        if number in _NO_SPACE or "os error 28" in text or "os error 27" in text:
            raise UserError(
                f"{what}: cannot be written, the disk is full or over its quota; "
                f"what was saved before is intact"
            ) from error
        raise
