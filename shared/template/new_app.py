"""Begin an application: ``python -m shared.template.new_app NAME``.

Copies ``shared/template`` to ``NAME/`` and its tests to ``tests/NAME/``, and enters the name in
``Makefile`` and ``pyproject.toml``. The copy runs and passes its tests as it is.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from shared import cli
from shared.errors import UserError

TEMPLATE = Path("shared/template")
TESTS = Path("tests/shared/template")
TARGETS = """
.PHONY: train-{name} eval-{name}

train-{name}: $(MNIST)  ## train {name}; the result is in runs/{name}-default
	$(RUN) {name}.train $(TRAIN_ARGS)

eval-{name}: $(MNIST)  ## measure a run of {name} on the test digits
	$(BIN)/python -m {name}.evaluate $(ARGS)
"""


def renamed(text: str, name: str) -> str:
    """The template's text about an application of this name."""
    return re.sub(r"shared([./])template", name, text).replace("template", name)


def copy(source: Path, target: Path, name: str) -> None:
    """Every text file of a folder, its contents and its name about ``name``."""
    target.mkdir(parents=True)
    for file in sorted(
        path for path in source.iterdir() if path.is_file() and path.name != Path(__file__).name
    ):
        (target / renamed(file.name, name)).write_text(renamed(file.read_text(), name))


def create(name: str, root: Path) -> None:
    """The new application in the repository ``root``.

    Raises:
        UserError: no name for a package, or one that is taken; nothing is written.
    """
    if not re.fullmatch("[a-z]+", name):
        raise UserError(f"NAME {name!r}: must be a word of lower-case letters")
    if (root / name).exists() or importlib.util.find_spec(name) is not None:
        raise UserError(f"NAME {name}: a module of this name exists already")
    copy(root / TEMPLATE, root / name, name)
    copy(root / TESTS, root / "tests" / name, name)
    project, makefile = root / "pyproject.toml", root / "Makefile"
    packages = re.sub(r'(= \["shared"[^]]*)\]', rf'\1, "{name}"]', project.read_text())
    project.write_text(re.sub(r'(layers = \["[^"]*)"', rf'\1 | {name}"', packages))
    makefile.write_text(makefile.read_text() + TARGETS.format(name=name))
    for tidy in (["check", "--fix", "--select", "I"], ["format"]):  # the name decides the order
        command = [sys.executable, "-m", "ruff", *tidy, "--quiet", name, f"tests/{name}"]
        subprocess.run(command, cwd=root, check=True)


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("which name? make new-app NAME=...")
    name = sys.argv[1]
    create(name, Path())
    print(
        f"created {name}/: try make train-{name} PRESET=smoke, then read {name}/README.md; "
        f"its tests: .venv/bin/pytest tests/{name}"
    )


if __name__ == "__main__":
    cli.run(main, "shared.template.new_app")
