"""SIGINT and SIGTERM ask for a stop; the training loop stops at its next step boundary."""

import signal
from types import FrameType

_received: int = 0


def install() -> None:
    """Remember the first SIGINT or SIGTERM instead of dying of it; a second one kills as usual."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _remember)


def uninstall() -> None:
    """From here on a signal acts at once, as usual."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def received() -> int:
    """The number of the signal that asked for a stop, or 0."""
    return _received


def _remember(signum: int, _: FrameType | None) -> None:
    global _received
    _received = signum
    uninstall()
