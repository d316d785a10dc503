"""Every refusal is one line that names the culprit, exit code 2, and nothing on disk."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from shared.run.checkpoint import MANIFEST
from shared.run.folder import sha256
from tests.helpers import ROOT, Processes, assert_same_run, flip_byte, refused
from tests.programs import SMALLEST, SPECIMEN

OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "negative": (["smoke", "--beta", "-1"], ["--beta -1", ">= 0"]),
    "zero": (["smoke", "--width", "0"], ["--width 0", ">= 1"]),
    "nan": (["smoke", "--beta", "nan"], ["--beta nan", ">= 0"]),
    "infinite": (["smoke", "--lr", "inf"], ["--lr inf", "> 0 and finite"]),
    "no number": (["smoke", "--beta", "abc"], ["--beta", "abc"]),
    "no value": (["smoke", "--beta"], ["--beta"]),
    "all at once": (
        ["smoke", "--beta", "-1", "--width", "0", "--lr", "0"],
        ["--beta -1", "--width 0", "--lr 0"],
    ),
    "choice": (["smoke", "--mixed-precision", "bf61"], ["--mixed-precision", "bf61", "no", "bf16"]),
    "preset": (["smok"], ["preset 'smok'", "did you mean smoke", "default"]),
    "option": (["smoke", "--betta", "4"], ["--betta", "did you mean --beta"]),
    "late preset": (["--beta", "2", "smoke"], ["'smoke'", "preset comes first"]),
    "missing run": (["--resume", "/nowhere/run"], ["--resume /nowhere/run"]),
    "tracker": (["smoke", "--trackers", "trackio"], ["--trackers trackio", "pip install"]),
    "repository": (["smoke", "--push-to-hub", "a b"], ["--push-to-hub a b"]),
    "data": (["smoke", "--data", "/dev/null/data"], ["/dev/null"]),
    "out": (["smoke", "--out", "/dev/null/run"], ["/dev/null/run"]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, tmp_path: Path, processes: Processes) -> None:
    """In a folder of its own, where nothing else could write a run."""
    argv, words = OPTIONS[case]
    (tmp_path / "data").symlink_to(ROOT / "data")
    refused(processes(*argv, folder=tmp_path), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> Path:
    run = tmp_path_factory.mktemp("bad") / "run"
    assert processes(*SMALLEST, "--out", run).code == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_out_is_taken(run: Path, processes: Processes) -> None:
    before = sorted(run.rglob("*"))
    refused(processes(*SMALLEST, "--out", run), f"--out {run}", f"--resume {run}")
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("name", ["model.safetensors", "optimizers.pt", "progress.json", MANIFEST])
def test_flipped_byte(name: str, run: Path, trained: Path, processes: Processes) -> None:
    newest, earlier = run / "checkpoints/step-00000006", run / "checkpoints/step-00000003"
    flip_byte(newest / name)
    refused(processes("--resume", run), newest, f"{earlier} is intact")
    if name != MANIFEST:  # whose flipped byte may lie in another file's checksum
        refused(processes("--resume", run), newest / name)
    assert processes("--resume", earlier).code == 0
    assert_same_run(trained, run)  # the damaged checkpoint has been written anew


def test_resume_with_other_options(run: Path, processes: Processes) -> None:
    refused(
        processes("--resume", run, "--beta", "3", "--width", "9"), "--beta is 0.1", "--width is 16"
    )
    refused(processes("default", "--resume", run), "preset default", "preset smoke")
    refused(processes("--resume", run, "--out", "elsewhere"), "--out")
    assert processes("--resume", run, "--keep", "5").code == 0


def test_resume_of_an_empty_run(run: Path, processes: Processes) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    refused(processes("--resume", run), f"--resume {run}", "no complete checkpoint")
    refused(processes("--resume", run / "checkpoints/step-00000003"), "step-00000003")
    (run / "config.json").write_text("{}")
    refused(processes("--resume", run), run / "config.json")


def test_resume_of_another_architecture(run: Path, processes: Processes) -> None:
    about = json.loads((run / "config.json").read_text())
    about["config"]["width"] = 17
    (run / "config.json").write_text(json.dumps(about))
    refused(processes("--resume", run), "another architecture", "16", "17")


class Malice:
    """Unpickling this creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_pickle_with_code_is_not_executed(
    run: Path, tmp_path: Path, processes: Processes
) -> None:
    for checkpoint in (run / "checkpoints").iterdir():
        path = checkpoint / "optimizers.pt"
        path.write_bytes(pickle.dumps(Malice(tmp_path / "executed")))
        entries = json.loads((checkpoint / MANIFEST).read_text())
        (checkpoint / MANIFEST).write_text(json.dumps(entries | {path.name: sha256(path)}))
    refused(processes("--resume", run), run / "checkpoints/step-00000006/optimizers.pt", "refused")
    assert not (tmp_path / "executed").exists()


def test_models(run: Path, tmp_path: Path, processes: Processes) -> None:
    program, out = SPECIMEN.replace("train", "evaluate"), tmp_path / "out"
    where = ("--json", out)
    refused(processes("--model", "/nowhere", *where, program=program), "/nowhere")
    flip_byte(run / "model/model.safetensors")
    damaged = run / "model/model.safetensors"
    refused(processes("--model", run, *where, program=program), damaged, "damaged")
    refused(processes("--modal", run, *where, program=program), "--modal", "--model")
    refused(processes(run, *where, program=program), "unexpected argument")
    assert not out.exists()
