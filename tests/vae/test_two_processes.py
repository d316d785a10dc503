"""Two processes (gloo) compute what one computes, for every objective, and resume together."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.helpers import TINY, Processes, Result, assert_same_run, last_state, metrics, refused

# 51 digits in batches of 25: rows 13 + 12 twice, then 1 + 0. With Adam: Muon orthogonalises in
# bfloat16, which would blow rounding up.
UNEVEN = [*TINY, "--train-size", "51", "--epochs", "3", "--optimizer", "adam"]
CASES = {
    "elbo": [],
    "free-bits": ["--free-bits", "0.2"],
    "capacity": ["--objective", "capacity", "--capacity", "3"],
    "iwae": ["--objective", "iwae", "--samples", "3"],
    "dreg": ["--objective", "dreg", "--samples", "3"],
    "tc": ["--objective", "tc", "--beta", "4"],
    "vib": ["--objective", "vib", "--beta", "0.01"],
    "conv": ["--network", "conv", "--channels", "4"],
}


@pytest.fixture(scope="module")
def processes(processes: Processes) -> Callable[..., Result]:
    return partial(processes, program="vae.train")


@pytest.mark.parametrize("case", CASES)
def test_two_equal_one(case: str, tmp_path: Path, processes: Processes) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert processes(*UNEVEN, *CASES[case], "--out", one).code == 0
    result = processes(*UNEVEN, *CASES[case], "--out", two, ranks=2)
    assert result.codes == [0, 0], result.errs
    (ours, our_state), (theirs, their_state) = last_state(one), last_state(two)
    worst = max((ours[name] - theirs[name]).abs().max().item() for name in ours)
    # Adam's step forgets a factor on all gradients; its averages of them do not.
    averages = [name for name in our_state if name.endswith("exp_avg")]
    gradient = max(
        ((our_state[name] - their_state[name]).abs().max() / our_state[name].abs().max()).item()
        for name in averages
    )
    assert averages
    loss = max(
        abs(a[name] - b[name]) / abs(b[name])
        for a, b in zip(metrics(one), metrics(two), strict=True)
        for name in a
    )
    assert worst < 1e-3  # a step is up to 4e-3
    assert gradient < 1e-3
    assert loss < 1e-4


@pytest.mark.parametrize("case", ["elbo", "tc"])
def test_resume_is_exact(case: str, tmp_path: Path, processes: Processes) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    argv = [*TINY, *CASES[case]]
    assert processes(*argv, "--out", whole, ranks=2).codes == [0, 0]
    # The signal reaches rank 1 alone; both stop at the same step.
    stopped = processes(*argv, "--out", cut, ranks=2, fault="signal:SIGTERM:5:1")
    assert stopped.codes == [143, 143]
    assert stopped.errs[1] == ""
    assert f"--resume {cut}" in stopped.err
    assert sorted(p.name for p in (cut / "checkpoints").iterdir()) == [
        "step-00000003",
        "step-00000005",
    ]
    assert processes("--resume", cut, ranks=2).codes == [0, 0]
    assert_same_run(whole, cut)


def test_resume_on_another_number_of_processes(tmp_path: Path, processes: Processes) -> None:
    run, one = tmp_path / "run", tmp_path / "one"
    assert processes(*UNEVEN, "--out", one).code == 0
    assert processes(*UNEVEN, "--out", run, ranks=2, fault="signal:SIGTERM:5").codes == [143] * 2
    assert processes("--resume", run).code == 0
    ours, theirs = last_state(one)[0], last_state(run)[0]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_fully_sharded_equals_one_and_resumes(tmp_path: Path, processes: Processes) -> None:
    one, whole, cut = (tmp_path / name for name in ("one", "whole", "cut"))
    assert processes(*UNEVEN, "--out", one).code == 0
    result = processes(*UNEVEN, "--out", whole, ranks=2, fault="fsdp")
    assert result.codes == [0, 0], result.errs
    ours, theirs = last_state(one)[0], last_state(whole)[0]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)
    stopped = processes(*UNEVEN, "--out", cut, ranks=2, fault="fsdp;signal:SIGTERM:5")
    assert stopped.codes == [143, 143], stopped.errs
    resumed = processes("--resume", cut, ranks=2, fault="fsdp")
    assert resumed.codes == [0, 0], resumed.errs
    assert_same_run(whole, cut)
    refused(processes(*TINY, "--out", tmp_path / "muon", ranks=2, fault="fsdp"), "--optimizer muon")
