"""Two processes (gloo) fail together, and an error is printed once."""

from pathlib import Path

from tests.helpers import Processes, refused
from tests.programs import SMALLEST


def test_bad_input_is_printed_once(tmp_path: Path, processes: Processes) -> None:
    (tmp_path / "taken").mkdir()
    for argv, words in (
        ([*SMALLEST, "--beta", "-1"], ["--beta -1"]),
        ([*SMALLEST, "--out", tmp_path / "taken"], ["--out", "exists already"]),
    ):
        result = processes(*argv, ranks=2)
        refused(result, *words)
        assert result.errs[1] == ""


def test_fewer_processes_than_requested(tmp_path: Path, processes: Processes) -> None:
    out = tmp_path / "run"
    result = processes(*SMALLEST, "--out", out, env={"KL_ZOO_PROCESSES": "2"})
    refused(result, "2 processes were requested, 1 started", "NPROC=2 LAUNCH=cpu")
    assert not out.exists()


def test_nan_and_full_disk_end_both(tmp_path: Path, processes: Processes) -> None:
    for fault, words in (("poison:4", ["loss nan", "step 4"]), ("full:4", ["metrics.jsonl"])):
        run = tmp_path / fault[:4]
        result = processes(*SMALLEST, "--out", run, ranks=2, fault=fault)
        refused(result, *words)
        assert result.errs[1] == ""
        assert (run / "checkpoints/step-00000003/manifest.json").exists()
