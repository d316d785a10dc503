"""Text as a list of documents: the Brown corpus, files of one's own, or a Hub data set."""

import re
from pathlib import Path

from shared.data.brown import load_brown
from shared.errors import UserError, first_line


def load_documents(source: str, root: Path) -> list[str]:
    """The documents of a source: at least one, none of them empty.

    Args:
        source: ``brown``; a text file, whose documents are separated by blank lines, which may
            hold spaces; a folder, where each ``*.txt`` (or ``.TXT``) is a document; or a Hub data
            set with a column ``text``.
        root: folder of the data sets.

    Raises:
        UserError: no such source, no text in it, not UTF-8, or the Hub cannot be reached.
    """
    path = Path(source)
    if source == "brown":
        documents = list(load_brown(root).values())
    elif path.is_dir():
        files = (file for file in sorted(path.iterdir()) if file.suffix.lower() == ".txt")
        documents = [_read(file) for file in files if not file.name.startswith(".")]
    elif path.is_file():
        documents = re.split(r"\n\s*\n", _read(path))
    else:
        documents = _from_hub(source)
    documents = [text.strip() for text in documents if text.strip()]
    if not documents:
        raise UserError(f"--text {source}: holds no text")
    return documents


def _read(file: Path) -> str:
    """UTF-8, whatever the locale, without the mark with which some editors begin a file."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"--text {file}: not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise UserError(f"--text {file}: cannot be read ({error.strerror})") from error


def _from_hub(name: str) -> list[str]:
    from datasets import load_dataset  # seconds to import, and only needed here

    try:
        return list(load_dataset(name, split="train")["text"])
    except Exception as error:  # the Hub, its HTTP client and the network each raise their own
        reason = first_line(error)
        raise UserError(
            f"--text {name}: neither a file nor a folder, and the Hub has no data set of "
            f"this name with a column text ({reason})"
        ) from error
