"""The application from its loss to its commands; a copy of it brings a copy of this file."""

import json
import math
from pathlib import Path

import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from shared.template import objective
from shared.template.model import Classifier
from tests.helpers import Processes, assert_nearly_same_run, assert_same_run, metrics, refused

PROGRAM = "shared.template.train"
# 60 digits in batches of 25: steps 25, 25, 10; two epochs are six steps, the first ends with 3.
TINY = """
    smoke --train-size 60 --test-size 100 --batch-size 25 --epochs 2 --width 16 --warmup 2
""".split()


def test_confidence_is_the_kl_to_the_uniform_distribution() -> None:
    logits = 3 * torch.randn(20, 10, dtype=torch.float64, generator=torch.manual_seed(0))
    expected = entropy(softmax(logits.numpy(), -1), [0.1] * 10, axis=-1)
    assert torch.allclose(objective.kl_to_uniform(logits), torch.from_numpy(expected), rtol=1e-12)
    assert torch.equal(objective.kl_to_uniform(torch.full((3, 10), 7.0)), torch.zeros(3))
    sure = torch.eye(10)[:1] * 1e4
    assert objective.kl_to_uniform(sure).item() == pytest.approx(math.log(10))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> Path:
    run = tmp_path_factory.mktemp("template") / "whole"
    result = processes(*TINY, "--out", run, program=PROGRAM)
    assert result.code == 0, result.err
    assert result.err == ""
    return run


def test_what_a_run_leaves(whole: Path, tmp_path: Path, processes: Processes) -> None:
    assert {path.name for path in whole.iterdir()} == set(
        """
        config.json env.json metrics.jsonl summary.json checkpoints model pictures
    """.split()
    )
    said = json.loads((whole / "summary.json").read_text())["unseen"]
    result = processes(
        "--model",
        whole,
        "--test-size",
        "100",
        "--json",
        tmp_path / "a.json",
        program=PROGRAM.replace("train", "evaluate"),
    )
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "a.json").read_text())["metrics"] == said
    assert f"errors                {said['errors']} of 100" in result.out
    model = Classifier.from_pretrained(whole / "model")
    assert model(torch.rand(3, 784)).shape == (3, 10)


def test_it_learns_and_beta_holds_it_back(tmp_path: Path, processes: Processes) -> None:
    sure = {}
    for beta in (0, 1):
        run = tmp_path / str(beta)
        assert processes("smoke", "--beta", beta, "--out", run, program=PROGRAM).code == 0
        lines = metrics(run)
        assert lines[-1]["unseen_errors"] < 150 < lines[-1]["unseen_digits"]
        assert lines[-1]["loss"] < lines[0]["loss"]
        sure[beta] = lines[-1]["unseen_kl_to_uniform"]
    assert sure[1] < sure[0] - 0.3


def test_cut_in_the_middle_of_epoch_1(whole: Path, tmp_path: Path, processes: Processes) -> None:
    cut = tmp_path / "cut"
    stopped = processes(*TINY, "--out", cut, program=PROGRAM, fault="signal:SIGTERM:5")
    assert stopped.code == 143
    assert processes("--resume", cut, program=PROGRAM).code == 0
    assert_same_run(whole, cut)


def test_two_processes_equal_one(whole: Path, tmp_path: Path, processes: Processes) -> None:
    result = processes(*TINY, "--out", tmp_path / "two", program=PROGRAM, ranks=2)
    assert result.codes == [0, 0], result.errs
    assert_nearly_same_run(whole, tmp_path / "two")


def test_bad_input(tmp_path: Path, processes: Processes) -> None:
    result = processes("smoke", "--beta", "-1", "--out", tmp_path / "run", program=PROGRAM)
    refused(result, "--beta -1.0: must be >= 0")
    assert not (tmp_path / "run").exists()
