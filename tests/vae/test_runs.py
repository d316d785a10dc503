"""Runs of the VAE: resumed exactly for each kind of objective; refusals of its own programs."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.helpers import TINY, Processes, Result, assert_same_run, flip_byte, refused

CASES = {
    "elbo": [],
    "dreg": ["--objective", "dreg", "--samples", "3"],
    "annealed": ["--anneal", "linear", "--anneal-epochs", "2", "--optimizer", "adam"],
}


@pytest.fixture(scope="module")
def processes(processes: Processes) -> Callable[..., Result]:
    return partial(processes, program="vae.train")


@pytest.mark.parametrize("case", CASES)
def test_cut_in_the_middle_of_epoch_1(case: str, tmp_path: Path, processes: Processes) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert processes(*TINY, *CASES[case], "--out", whole).code == 0
    name, code = ("SIGINT", 130) if case == "dreg" else ("SIGTERM", 143)
    stopped = processes(*TINY, *CASES[case], "--out", cut, fault=f"signal:{name}:5")
    assert stopped.code == code
    assert f"--resume {cut}" in stopped.err
    assert len(stopped.err.splitlines()) == 1
    progress = json.loads((cut / "checkpoints/step-00000005/progress.json").read_text())
    assert (progress["epoch"], progress["steps_in_epoch"]) == (1, 2)
    assert not (cut / "model").exists()
    assert processes("--resume", cut).code == 0
    assert_same_run(whole, cut)
    assert (cut / "model/manifest.json").exists()


def test_every_problem_at_once(processes: Processes) -> None:
    """Values outside their range, and options that need one another."""
    argv = ["smoke", "--beta", "-1", "--latent", "0", "--anneal", "linear"]
    refused(processes(*argv), "--beta -1", "--latent 0", "--anneal linear", "--anneal-epochs")
    refused(processes("smoke", "--objective", "elbow"), "--objective", "elbow", "elbo", "dreg")


def test_a_damaged_model_is_not_sampled(tmp_path: Path, processes: Processes) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert processes(*TINY, "--out", run).code == 0
    damaged = run / "model/model.safetensors"
    flip_byte(damaged)
    for program, where in (("vae.evaluate", "--json"), ("vae.sample", "--out")):
        refused(processes("--model", run, where, out, program=program), damaged, "damaged")
    assert not out.exists()


def test_a_classifier_cannot_be_sampled(tmp_path: Path, processes: Processes) -> None:
    run, out = tmp_path / "vib", tmp_path / "out"
    assert processes(*TINY, "--objective", "vib", "--epochs", "1", "--out", run).code == 0
    refused(processes("--model", run, "--out", out, program="vae.sample"), "--model", "VIB")
    against = ("--against", run, "--test-size", "50", "--samples", "2")
    refused(processes("--model", run, *against, program="vae.evaluate"), "--against")
    assert not out.exists()
