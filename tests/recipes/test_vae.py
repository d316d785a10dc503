"""The documented commands, for every objective and network, at smoke size."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.helpers import PATIENCE, QUIET, ROOT, TINY, Processes, Result, metrics, refused

VARIANTS = {
    "iwae": ["--objective", "iwae", "--samples", "2"],
    "dreg": ["--objective", "dreg", "--samples", "2", "--network", "conv", "--channels", "2"],
    "capacity": ["--objective", "capacity", "--anneal", "linear", "--anneal-epochs", "1"],
    "tc": ["--objective", "tc", "--network", "mlp", "--activation", "tanh"],
    "vib": ["--objective", "vib", "--network", "mlp", "--beta", "1e-3", "--pixels", "grey"],
    "validation": ["--validation", "100", "--anneal", "cyclical", "--anneal-epochs", "1"],
}
PICTURES = {"curves", "latents", "reconstructions", "samples", "interpolation", "traversals"}
SMALL = ("--test-size", "100", "--samples", "2")


def command(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, argv)],
        cwd=ROOT,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.fixture(scope="module")
def processes(processes: Processes) -> Callable[..., Result]:
    return partial(processes, program="vae.train")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> Path:
    run = tmp_path_factory.mktemp("recipes") / "smoke"
    result = processes(*TINY, "--trackers", "tensorboard", "--out", run)
    assert result.code == 0, result.err
    assert result.err == ""
    return run


@pytest.mark.slow
def test_the_smoke_preset_learns(smoke_run: Callable[[str], Path]) -> None:
    bounds = [line["unseen_bound"] for line in metrics(smoke_run("vae.train"))]
    assert bounds == sorted(bounds)
    assert bounds[-1] > -200  # the mean digit as the decoder's answer scores -206.8


def test_the_run_folder(smoke: Path) -> None:
    assert {p.name for p in smoke.iterdir()} == set(
        """
        config.json env.json metrics.jsonl summary.json checkpoints model pictures kl-zoo
    """.split()
    )
    assert {p.name for p in (smoke / "checkpoints/step-00000006").iterdir()} == {
        "model.safetensors",
        "optimizers.pt",
        "progress.json",
        "manifest.json",
    }
    assert {p.name for p in (smoke / "model").iterdir()} == set(
        """
        config.json model.safetensors training.json metrics.json README.md manifest.json
    """.split()
    )
    assert {p.stem for p in (smoke / "pictures").iterdir()} == PICTURES
    assert list(smoke.rglob("events.out.tfevents*"))
    assert [line["step"] for line in metrics(smoke)] == [3, 6]
    summary = json.loads((smoke / "summary.json").read_text())
    assert summary["steps"] == 6
    assert "log_likelihood" in summary["unseen"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_objective_and_network(variant: str, tmp_path: Path, processes: Processes) -> None:
    run = tmp_path / "run"
    result = processes(*TINY, *VARIANTS[variant], "--out", run)
    assert result.code == 0, result.err
    assert result.err == ""  # no progress bar where there is no terminal, no warnings
    assert result.out.count("\nepoch ") == 2
    assert "\r" not in result.out
    evaluated = processes("--model", run, *SMALL, program="vae.evaluate")
    assert evaluated.code == 0, evaluated.err
    assert ("test error" if variant == "vib" else "log-likelihood") in evaluated.out


def test_keep_and_checkpoint_every(tmp_path: Path, processes: Processes) -> None:
    run = tmp_path / "run"
    argv = ("--epochs", "5", "--keep", "2", "--checkpoint-every", "2", "--out", run)
    assert processes(*TINY, *argv).code == 0
    kept = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert kept == ["step-00000012", "step-00000015"]


def test_evaluate(smoke: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "result.json"
    result = command("vae.evaluate", "--model", smoke, "--against", smoke, *SMALL, "--json", out)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "log-likelihood" in result.stdout
    stored = json.loads(out.read_text())
    assert stored["metrics"]["digits"] == 100
    assert stored["metrics"]["against"]["log_bayes_factor"] == 0
    assert stored["environment"]["command"].startswith("python -m vae.evaluate --model")


def test_evaluate_an_unfinished_run(smoke: Path, tmp_path: Path, processes: Processes) -> None:
    run = tmp_path / "run"
    assert processes(*TINY, "--out", run, fault="signal:SIGTERM:6").code == 143
    result = processes("--model", run, *SMALL, program="vae.evaluate")
    finished = processes("--model", smoke, *SMALL, program="vae.evaluate")
    assert result.code == 0, result.err
    assert result.out == finished.out


def test_sample(smoke: Path, tmp_path: Path, processes: Processes) -> None:
    out = tmp_path / "pictures"
    result = processes("--model", smoke / "model", "--out", out, program="vae.sample")
    assert result.code == 0, result.err
    assert result.err == ""
    assert {p.stem for p in out.iterdir()} == PICTURES - {"curves", "latents"}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in out.iterdir())


@pytest.mark.parametrize("program", ["vae.train", "vae.evaluate", "vae.sample"])
def test_help(program: str, processes: Processes) -> None:
    result = processes("--help", program=program)
    assert result.code == 0
    assert result.err == ""
    assert "usage:" in result.out
    assert "--seed" in result.out


def test_push_to_hub_without_a_hub(tmp_path: Path, processes: Processes) -> None:
    run = tmp_path / "run"
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "none", "HF_HUB_OFFLINE": "1"}
    result = processes(*TINY, "--push-to-hub", "me/digits", "--out", run, env=nowhere)
    refused(result, "--push-to-hub me/digits", f"the model is safe in {run / 'model'}")
    assert (run / "summary.json").exists()
