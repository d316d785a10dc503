"""What the READMEs say is there: targets, options, tables, tree, launch configurations."""

import importlib
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

import shared.kl
from distillation.config import PRESETS as DISTILLATION
from distillation.lm.config import PRESETS as LANGUAGE
from rlhf import dpo, ppo, reward, rloo, sft
from shared.config import option, problems
from shared.experiments.tables import with_tables
from shared.run.checkpoint import verify_folder
from tests.helpers import ROOT
from trpo_ppo.config import presets as control_presets
from vae.config import PRESETS as VAE

READMES = [
    ROOT / name
    for name in tuple(
        """
        README.md CONTRIBUTING.md vae/README.md shared/kl/README.md distillation/README.md
        distillation/lm/README.md rlhf/README.md trpo_ppo/README.md shared/processes/README.md
    """.split()
    )
]
PROGRAMS = [
    importlib.import_module(name)
    for name in tuple(
        """
        vae.config vae.evaluate vae.sample vae.experiments.bench vae.experiments.reproduce
        shared.experiments.kl.demo shared.experiments.kl.bench distillation.config
        distillation.evaluate distillation.experiments.reproduce distillation.lm.config
        distillation.lm.evaluate distillation.lm.experiments.bench
        distillation.lm.experiments.reproduce trpo_ppo.config trpo_ppo.evaluate
        trpo_ppo.experiments.bench trpo_ppo.experiments.compare trpo_ppo.experiments.reproduce
        rlhf.ppo rlhf.sft rlhf.reward rlhf.dpo rlhf.rloo rlhf.evaluate rlhf.preferences
        rlhf.experiments.bench rlhf.experiments.reproduce rlhf.experiments.study
    """.split()
    )
]
TEXT = "\n".join(path.read_text() for path in READMES)


def make(*arguments: str) -> str:
    return subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_every_make_target_named_is_one():
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+(?:-[a-z]+)*)", TEXT, re.MULTILINE))
    assert named - rules <= {"bench", "train-word"}  # `make bench-*`, and a new application
    assert {"train-vae", "test", "setup"} <= named


def test_every_option_named_is_one():
    kinds = [getattr(program, "Options", getattr(program, "Config", None)) for program in PROGRAMS]
    options = {option(field.name) for kind in kinds for field in fields(kind)}
    others = set(
        """
        --config-file --num-machines --machine-rank --num-processes --main-process-ip
        --main-process-port --help --write
    """.split()
    )
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
        assert {name, re.sub("(probs|logits)$", "*", name)} & named, name
    public = set(shared.kl.__all__)
    for stem in {n[:-1] for n in named if n.endswith("_from_*") and n != "_from_*"}:
        assert {f"{stem}probs", f"{stem}logits"} <= public, stem


@pytest.mark.parametrize("folder", ["vae", "distillation", "distillation/lm", "rlhf", "trpo_ppo"])
def test_every_application_is_described_in_the_same_order(folder):
    headings = re.findall(r"^## (.+)$", (ROOT / folder / "README.md").read_text(), re.MULTILINE)
    assert headings[:5] == [
        "Commands",
        "Metrics",
        "Results",
        "How it is done, and from where",
        "What did not work",
    ]


def test_every_picture_is_there():
    for path in READMES:
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", path.read_text()):
            assert (path.parent / picture).is_file(), picture


def test_the_tree_names_every_module_of_shared():
    tree = (ROOT / "README.md").read_text().split("## The tree")[1]
    for module in (ROOT / "shared").rglob("*.py"):
        if module.name != "__init__.py":
            assert module.name in tree, module


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero2", "zero3"])
def test_every_launch_configuration_is_read_by_accelerate(name):
    path = ROOT / "shared" / "processes" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    expected = {"ddp": "MULTI_GPU", "fsdp": "FSDP"}.get(name, "DEEPSPEED")
    assert config.distributed_type == expected
    command = make("train-vae", "NPROC=2", f"LAUNCH={name}", "PRESET=smoke")
    assert f"python -m shared.processes.launcher 2 {name} vae.train smoke" in command


def test_the_same_variables_reach_the_program():
    one = make("train-vae", "PRESET=smoke", "SEED=3", "ARGS=--beta 4")
    assert "python -m vae.train smoke --seed 3 --beta 4" in one
    assert "-m vae.train --resume runs/x" in make("train-vae", "RESUME=runs/x", "SEED=3")
    assert "-m shared.processes.launcher 2 cpu vae.train" in make(
        "train-vae", "NPROC=2", "LAUNCH=cpu"
    )
    assert "-m shared.processes.launcher 1 cpu vae.train" in make(
        "train-vae", "NNODES=2", "LAUNCH=cpu"
    )


@pytest.mark.parametrize(
    "presets",
    [
        VAE,
        DISTILLATION,
        LANGUAGE,
        *(p.PRESETS for p in (ppo, sft, reward, dpo, rloo)),
        control_presets("CartPole-v1", "ppo-clip"),
        control_presets("Hopper-v5", "trpo"),
    ],
    ids="""
        vae distillation distillation.lm ppo sft reward dpo rloo CartPole Hopper
    """.split(),
)
def test_every_preset_is_valid(presets):
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
    assert {p.name for p in (ROOT / "vae" / "pretrained").iterdir()} == {"default", "paper", "vib"}
