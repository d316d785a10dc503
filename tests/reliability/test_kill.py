"""SIGKILL while a checkpoint is being written: the one before it serves, nothing stays behind."""

from pathlib import Path

import pytest

from tests.helpers import Processes, assert_same_run
from tests.programs import SMALLEST

STAGES = (
    "model.safetensors, optimizers.pt, progress.json, manifest.json, before rename, after rename"
).split(", ")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> Path:
    run = tmp_path_factory.mktemp("kill") / "whole"
    assert processes(*SMALLEST, "--out", run).code == 0
    return run


@pytest.mark.parametrize("stage", STAGES)
def test_killed_while_writing_the_second_checkpoint(
    stage: str, whole: Path, tmp_path: Path, processes: Processes
) -> None:
    run = tmp_path / "run"
    killed = processes(*SMALLEST, "--out", run, fault=f"die:{stage}:step-00000006")
    assert killed.code == -9
    left = sorted(p.name.partition("-step")[0] for p in (run / "checkpoints").iterdir())
    if stage == "after rename":
        assert left == ["step-00000003", "step-00000006"]
    else:
        assert left == [".tmp", "step-00000003"]
    resumed = processes("--resume", run)
    assert resumed.code == 0
    assert f"resumed from {run}/checkpoints/{left[-1]}" in resumed.out
    assert_same_run(whole, run)
    assert not list(run.rglob(".tmp-*"))


def test_killed_while_writing_the_first_checkpoint(tmp_path: Path, processes: Processes) -> None:
    run = tmp_path / "run"
    fault = "die:manifest.json:step-00000003"
    assert processes(*SMALLEST, "--out", run, fault=fault).code == -9
    refused = processes("--resume", run)
    assert refused.code == 2
    assert "holds no complete checkpoint" in refused.err


def test_killed_while_writing_the_model(whole: Path, tmp_path: Path, processes: Processes) -> None:
    run = tmp_path / "run"
    assert processes(*SMALLEST, "--out", run, fault="die:before rename:model").code == -9
    assert not (run / "model").exists()
    assert list(run.glob(".tmp-model-*"))
    assert processes("--resume", run).code == 0
    assert_same_run(whole, run)
    assert not list(run.rglob(".tmp-*"))
