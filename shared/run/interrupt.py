"""SIGINT and SIGTERM as requests to stop, which the training loop obeys after its next step."""

import signal
from types import FrameType

_received: int = 0


def install() -> None:
    """Remember the first SIGINT or SIGTERM instead of ending; a second one ends the process."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _remember)


def uninstall() -> None:
    """Let signals end the process at once again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def received() -> int:
    """The number of the signal that requested a stop, or 0."""
    return _received


def _remember(signum: int, _: FrameType | None) -> None:
    global _received
    _received = signum
    uninstall()
