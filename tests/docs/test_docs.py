"""Targets, options, tables, folders and pictures that the READMEs name exist."""

import ast
import importlib
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

import shared.kl
from shared.config import option, problems
from shared.experiments.tables import with_tables
from shared.run.checkpoint import verify_folder
from tests.helpers import ROOT
from tests.programs import APPLICATIONS, DOCUMENTED, PROGRAM, STEPS, TARGET, TRAINED

READMES = [
    path
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "shared/kl/README.md",
        "shared/processes/README.md",
        *(f"{application}/README.md" for application in APPLICATIONS),
        *(f"{application}/experiments/README.md" for application in APPLICATIONS),
    )
    if (path := ROOT / name).exists()
]
TOP = [*(name for name in APPLICATIONS if "/" not in name), "shared", "tests"]
TEXT = "\n".join(path.read_text() for path in READMES)


def make(*arguments: str) -> str:
    return subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_every_make_target_named_is_one():
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+(?:-[a-z]+)*)", TEXT, re.MULTILINE))
    assert named - rules <= {"bench", "train-word"}  # `make bench-*`, and a new application
    assert {TARGET, "test", "setup"} <= named


def test_every_option_named_is_one():
    modules = map(importlib.import_module, DOCUMENTED)
    kinds = [getattr(module, "Options", getattr(module, "Config", None)) for module in modules]
    options = {option(field.name) for kind in kinds for field in fields(kind)}
    others = {"--help", "--write", "--random-order"}
    named = {o.replace("_", "-") for o in re.findall(r"(?<![\w-])--[a-z][a-z_-]+", TEXT)}
    assert named <= options | others


def test_tables_are_made_of_the_committed_results():
    for path in READMES:
        assert with_tables(path.read_text(), ROOT) == path.read_text(), f"{path}: make tables"


def test_every_public_function_of_the_toolbox_is_in_its_readme():
    """By name, or as one of a pair: `kl_from_*` stands for both spellings."""
    text = (ROOT / "shared" / "kl" / "README.md").read_text()
    named = {
        name for span in re.findall(r"`([^`\n]+)`", text) for name in re.findall(r"\w+\*?", span)
    }
    for name in shared.kl.__all__:
        assert {name, re.sub("(log_probs|probs|logits)$", "*", name)} & named, name
    public = set(shared.kl.__all__)
    for stem in {n[:-1] for n in named if n.endswith("_from_*") and n != "_from_*"}:
        assert {f"{stem}probs", f"{stem}logits"} <= public, stem


@pytest.mark.parametrize("application", APPLICATIONS)
def test_every_application_is_described_in_the_same_order(application):
    text = (ROOT / application / "README.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    order = ["Results", "Commands", "Metrics", "How it is done, and from where"]
    assert headings[:5] == [*order, "What did not work"]


def test_every_picture_is_there():
    for path in READMES:
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", path.read_text()):
            assert (path.parent / picture).is_file(), picture


def test_every_file_named_is_there():
    """By its path from the README's folder or from the top, or by the end of such a path."""
    for path in READMES:
        around = [path.parent] if path.parent != ROOT else [ROOT / name for name in TOP]
        below = [f"/{file.as_posix()}" for folder in around for file in folder.rglob("*.py")]
        for file in re.findall(r"`([\w/.-]+\.py)`", path.read_text()):
            near = (path.parent / file).is_file() or (ROOT / file).is_file()
            assert near or any(name.endswith(f"/{file}") for name in below), f"{path}: {file}"


def folders(root):
    return {
        path.name
        for path in root.iterdir()
        if path.is_dir() and not re.match(r"[._]|runs$", path.name)
    }


def test_the_map_names_every_folder():
    """At the top and in shared/, as `name/`."""
    text = (ROOT / "README.md").read_text().split("## The map\n")[1].split("\n## ")[0]
    assert folders(ROOT) | folders(ROOT / "shared") <= set(re.findall(r"(\w+)/", text))


def code_lines(path):
    """Lines that are not blank, not a comment and not part of a docstring."""
    text = path.read_text()
    left_out = set()
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            left_out |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(line[:1] not in ("", "#") and number not in left_out for number, line in lines)


@pytest.mark.parametrize("step", STEPS)
def test_one_training_step_is_three_files_that_contributing_names(step):
    files = STEPS[step].split()
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (row,) = re.findall(rf"^\| {step} \|(.*)$", text, re.MULTILINE)
    assert re.findall(r"`([\w/]+\.py)`", row) == files
    assert len(files) <= 3
    assert sum(code_lines(ROOT / file) for file in files) <= 500


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero2", "zero3"])
def test_every_launch_configuration_is_read_by_accelerate(name):
    path = ROOT / "shared" / "processes" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    expected = {"ddp": "MULTI_GPU", "fsdp": "FSDP"}.get(name, "DEEPSPEED")
    assert config.distributed_type == expected
    command = make(TARGET, "NPROC=2", f"LAUNCH={name}", "PRESET=smoke")
    assert f"python -m shared.processes.launcher 2 {name} {PROGRAM} smoke" in command


def test_the_same_variables_reach_the_program():
    one = make(TARGET, "PRESET=smoke", "SEED=3", "ARGS=--beta 4")
    assert f"python -m {PROGRAM} smoke --seed 3 --beta 4" in one
    assert f"-m {PROGRAM} --resume runs/x" in make(TARGET, "RESUME=runs/x", "SEED=3")
    assert f"-m shared.processes.launcher 2 cpu {PROGRAM}" in make(TARGET, "NPROC=2", "LAUNCH=cpu")
    assert f"-m shared.processes.launcher 1 cpu {PROGRAM}" in make(TARGET, "NNODES=2", "LAUNCH=cpu")


@pytest.mark.parametrize("name", TRAINED)
def test_every_preset_is_valid(name):
    module = importlib.import_module(name)
    if hasattr(module, "presets"):  # they depend on environment and algorithm
        families = [module.presets("CartPole-v1", "ppo-clip"), module.presets("Hopper-v5", "trpo")]
    else:
        families = [module.PRESETS]
    for presets in families:
        assert {"smoke", "default", "paper"} <= set(presets)
        for preset in presets.values():
            assert problems(preset) == []


PRETRAINED = pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*/pretrained/*")), ids=lambda p: f"{p.parent.parent.name}-{p.name}"
)


@PRETRAINED
def test_committed_weights_are_whole_and_small(path: Path):
    verify_folder(path)
    (weights,) = path.glob("*model.safetensors")  # or an adapter's
    assert weights.stat().st_size <= 5 * 2**20


@PRETRAINED
def test_a_card_tells_how_to_load_its_weights(path: Path):
    code = re.search(r"```python\n(.*?)```", (path / "README.md").read_text(), re.DOTALL)
    assert code
    assert "path/to/this/folder" in code[1]
    exec(code[1].replace("path/to/this/folder", str(path)), {})  # noqa: S102


def test_some_weights_are_committed():
    assert len(list(ROOT.glob("*/pretrained/*/manifest.json"))) >= 5
