"""A new application runs, passes its tests and the house's checks as it is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.template.new_app import create, renamed
from tests.helpers import PATIENCE, QUIET, ROOT
from tests.programs import APPLICATIONS

OTHERS = [folder for folder in APPLICATIONS if "/" not in folder]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository's programs and settings with an application ``mine``."""
    root = tmp_path_factory.mktemp("new") / "repository"
    ignore = shutil.ignore_patterns("results", "pretrained", "__pycache__", "*.png")
    for name in ("shared", *OTHERS, "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    for path in (*ROOT.glob("*.toml"), *ROOT.glob("*.txt"), ROOT / "Makefile"):
        shutil.copy(path, root)
    (root / "data").symlink_to(ROOT / "data")
    create("mine", root)
    return root


def command(repository: Path, *argv: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *argv],
        cwd=repository,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_its_tests_pass(repository: Path) -> None:
    command(repository, "pytest", "tests/mine")


def test_it_is_in_the_house(repository: Path) -> None:
    command(repository, "ruff", "check", "mine", "tests/mine")
    command(repository, "ruff", "format", "--check", "mine", "tests/mine")
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-logo"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (repository / OTHERS[0] / "thief.py").write_text("import mine.model\n")
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-logo"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    (repository / OTHERS[0] / "thief.py").unlink()
    assert done.returncode == 1
    assert f"{OTHERS[0]}.thief -> mine.model" in done.stdout


def test_its_commands(repository: Path) -> None:
    said = subprocess.run(
        ["make", "-n", "train-mine", "PRESET=smoke", "SEED=3"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert ".venv/bin/python -m mine.train smoke --seed 3" in said
    listed = subprocess.run(
        ["make", "help"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    assert "eval-mine" in listed


def test_nothing_speaks_of_the_template(repository: Path) -> None:
    files = [*(repository / "mine").iterdir(), *(repository / "tests/mine").iterdir()]
    assert {path.name for path in files} == set(
        """
        __init__.py config.py model.py objective.py train.py evaluate.py report.py README.md
        test_mine.py
    """.split()
    )
    assert not [path for path in files if "template" in path.read_text()]


def test_names() -> None:
    assert renamed("shared.template shared/template runs/template-default", "x") == (
        "x x runs/x-default"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My-App", "must be a word of lower-case letters"),
        ("shared", "NAME shared: a module of this name exists already"),
        ("json", "NAME json: a module of this name exists already"),
    ],
)
def test_names_that_are_refused(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        create(name, tmp_path)
    assert not list(tmp_path.iterdir())
