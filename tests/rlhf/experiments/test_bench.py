"""The benchmark of PPO: what is timed, at tiny size, and the arithmetic of its report."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from rlhf.experiments import bench, bench_loops
from rlhf.experiments.bench import ROWS, Options, config_of, measure, summary
from rlhf.experiments.bench_loops import PROMPT
from shared.errors import UserError
from shared.experiments import bench as harness
from shared.experiments.tables import describe_columns, markdown
from tests import tiny


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Sizes of a test, and a model whose padding is its end-of-text, as SmolLM2's."""
    model = tiny.write_model(tmp_path_factory.mktemp("model"))
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(model)
    return Options(model=str(model), batch_size=8, micro_batch=4, completion=3, iterations=2)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On the CPU; what a run does to its process is undone."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


@pytest.fixture
def command(alone: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:  # noqa: ARG001
    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["rlhf.experiments.bench", *arguments])
        bench.main()

    return run


@pytest.mark.parametrize(
    ("row", "head", "trunks"),
    [("ours", 2 * 32 + 1, 1), ("ours-separate", 32 + 1, 2), ("rloo", 0, 1)],
)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_a_row(row: str, head: int, trunks: int, options: Options, alone: None) -> None:  # noqa: ARG001
    """Phases are parts of the whole, and no more is trained than adapters and value heads."""
    found = measure(row, config_of(options))
    adapter = 2 * 16 * (32 + 32 + 32 + 16 + 32 + 16 + 32 + 32)  # in and out of q, k, v, o; 2 layers
    assert found["trained"] == trunks * adapter + head
    assert found["samples_per_cpu_second"] == pytest.approx(8 / found["seconds"])
    if head:
        parts = [found[phase] for phase in bench.PHASES]
        assert min(parts) > 0
        assert 0.5 * found["seconds"] < sum(parts) < found["seconds"]
    assert found["peak_bytes"] > 2**26  # of this whole process


def test_prompts_of_one_length_and_a_padding_of_its_own(options: Options, tmp_path: Path) -> None:
    prompts, reward = bench_loops.write_inputs(tmp_path, config_of(options))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    assert len(texts) > 100
    assert {len(tokens) for tokens in tokenizer(texts)["input_ids"]} == {PROMPT}
    padding = AutoTokenizer.from_pretrained(reward).pad_token_id
    assert padding != tokenizer.eos_token_id == tokenizer.pad_token_id
    assert json.loads((reward / "config.json").read_text())["pad_token_id"] == padding


def a_round(ours: float, peer: float) -> dict[str, dict[str, float]]:
    """Speeds of ours and of the peer; memory in the same ratio."""
    speeds = dict.fromkeys(ROWS, 1.0) | {"ours": ours, "trl-1.12": peer}
    return {
        row: {
            "samples_per_cpu_second": speed,
            "seconds": 16 / speed,
            "sampling": 4 / speed,
            "peak_bytes": speed * 1e9,
            "trained": 5.0,
        }
        for row, speed in speeds.items()
    }


def test_ratios_are_of_one_round() -> None:
    table = summary([a_round(4.0, 1.0), a_round(60.0, 10.0), a_round(10.0, 2.0)])
    ours, peer = (
        next(line for line in table if line["row"] == row) for row in ("ours", "trl-1.12")
    )
    assert ours["over_peer"] == ours["memory_of_peer"] == 5  # the median of 4, 6 and 5
    assert (ours["samples_per_cpu_second"], ours["least"], ours["most"]) == (10, 4, 60)
    assert (ours["seconds"], ours["peak_gigabytes"], ours["n"]) == (1.6, 10, 3)
    assert ours["sampling"] == 0.25
    assert peer["over_peer"] == 1
    assert "update" not in ours


def test_the_report(
    command: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "trl").mkdir()
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    speeds = iter([(3.0, 2.0), (8.0, 2.0)])
    rounds: list[Any] = []

    def fake(_: str, row: str, *__: Any) -> dict[str, float]:
        if row == next(iter(ROWS)):
            rounds.append(a_round(*next(speeds)))
        return rounds[-1][row]

    monkeypatch.setattr(harness, "measure_alone", fake)
    command("--repetitions", "2", "--json", str(tmp_path / "bench.json"))
    result = json.loads((tmp_path / "bench.json").read_text())
    printed = capsys.readouterr().out
    assert result["rounds"] == rounds
    assert result["rows"] == summary(rounds)
    assert result["columns"] == describe_columns(bench.COLUMNS)
    assert markdown(result) in printed
    assert "all of it trained" in result["note"]
    assert result["note"] in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "nowhere/bench.json"], "--json nowhere/bench.json: nowhere is not a folder"),
        (["--micro-batch", "12"], "--micro-batch 12: must divide --batch-size 16"),
        (["--batch-size", "6", "--micro-batch", "6"], "a multiple of 4"),
        (["--only", "trl"], "--only trl: must be one of ours, ours-separate"),
        ([], "TRL 1.12.0 is missing"),
    ],
)
def test_refused(
    arguments: list[str],
    message: str,
    command: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "TRL" in message:
        monkeypatch.setattr(bench, "FOLDER", tmp_path / "nowhere")
    else:
        (tmp_path / "trl").mkdir()
        monkeypatch.setattr(bench, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=message):
        command(*arguments)
