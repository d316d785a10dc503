"""Documents from files and folders, and what is said of sources that hold none."""

from pathlib import Path

import pytest

from shared.data.text import load_documents
from shared.errors import UserError


def test_a_file_is_split_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One.\nStill one.\n\nTwo é.\n\n\n\nThree.\n")
    assert load_documents(str(path), tmp_path) == ["One.\nStill one.", "Two é.", "Three."]


def test_a_folder_has_a_document_a_file(tmp_path: Path) -> None:
    for name, text in (("b.txt", "second"), ("a.txt", "first\n\nstill"), ("c.md", "no")):
        (tmp_path / name).write_text(text)
    assert load_documents(str(tmp_path), tmp_path) == ["first\n\nstill", "second"]


@pytest.mark.parametrize("content", [b"", b" \n\n ", b"\xff\xfe\x00"])
def test_no_text(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"--text {path}: (holds no text|not UTF-8 text)"):
        load_documents(str(path), tmp_path)


def test_what_editors_and_systems_do_to_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffOne é.\r\n \t\r\nTwo.\n\u00a0\nThree.".encode())
    assert load_documents(str(path), tmp_path) == ["One é.", "Two.", "Three."]


def test_a_folder_written_on_another_system(tmp_path: Path) -> None:
    (tmp_path / "A.TXT").write_bytes("\ufefferste".encode())
    (tmp_path / "b.Txt").write_text("zweite")
    (tmp_path / "._a.txt").write_bytes(b"\xff\x00")
    assert load_documents(str(tmp_path), tmp_path) == ["erste", "zweite"]


def test_the_locale_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    monkeypatch.setattr("locale.getencoding", lambda: "ascii")
    (tmp_path / "a.txt").write_bytes("é".encode())
    assert load_documents(str(tmp_path), tmp_path) == ["é"]


def test_the_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match=r"b\.txt: not UTF-8 text"):
        load_documents(str(tmp_path), tmp_path)
