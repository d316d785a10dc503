"""The benchmark of the KL of language-model logits, at smoke size."""

import json
import sys

import pytest
import torch

from shared.errors import UserError
from shared.experiments.bench import measure_alone
from shared.experiments.kl import bench_functions
from shared.experiments.kl.bench import Options, inputs, main, step, summary
from shared.experiments.kl.bench_methods import HEADS, LOGITS, METHODS
from shared.experiments.tables import markdown
from shared.kl.categorical.discrete import js_from_logits, kl_from_logits

TINY = Options(positions=6, vocabulary=200, head_positions=6, head_vocabulary=200, head_width=8)


@pytest.fixture
def command(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench_kl", *arguments])
        main()

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize("method", [m for m in [*LOGITS, *HEADS] if not METHODS[m].compiles])
def test_what_is_timed_is_the_gradient_of_the_mean(method):
    tensors = [tensor.double() for tensor in inputs(method, TINY, 6)]
    half = len(tensors) // 2
    teacher = [tensor.clone() for tensor in tensors[:half]]
    student = [tensor.clone().requires_grad_() for tensor in tensors[half:]]
    step(method, tensors)
    p, q = (part[0] if half == 1 else part[0] @ part[1].T for part in (teacher, student))
    whole = js_from_logits if method.startswith("js") else kl_from_logits
    whole(p, q, reduction="positionmean").backward()
    for timed, expected in zip(tensors[half:], student, strict=True):
        torch.testing.assert_close(timed.grad, expected.grad, rtol=1e-6, atol=1e-12)


def test_the_smoke_run_writes_results_that_tables_are_made_of(command, tmp_path, capsys):
    command("--smoke", "--results", str(tmp_path))
    printed = capsys.readouterr().out
    for name in ("bench", "heads", "precision"):
        result = json.loads((tmp_path / f"{name}.json").read_text())
        assert markdown(result) in printed
        assert result["environment"]["torch_threads"] == 1
    lines = {line["name"]: line for line in result["rows"]}
    ours, torchs = lines["`chunked_kl`"], lines["`F.kl_div`, `log_target=True`"]
    assert ours["value_0.0001"] < 1e-3 < torchs["value_0.0001"]
    assert ours["negative"] == 0
    assert ours["gradient"] < 0.1 * torchs["gradient"]


def test_a_measurement_in_a_process_of_its_own():
    big = {"positions": 128, "vocabulary": 50_000}
    figures = measure_alone("shared.experiments.kl.bench", "chunked_inplace", big)
    assert 0 < figures["ns_per_element"] < 1000
    assert figures["extra_memory"] < 0.6  # buffers of 5 rows, and what is loaded on first use


def test_ratios_are_of_one_round():
    rounds = [
        {
            "kl_div": {"seconds": a, "ns_per_element": a, "extra_memory": 5.0},
            "chunked": {"seconds": b, "ns_per_element": b, "extra_memory": 1.0},
        }
        for a, b in [(4.0, 1.0), (60.0, 10.0), (10.0, 2.0)]
    ]
    first, fast = summary(["kl_div", "chunked"], rounds)
    assert first["speed"] == 1
    assert fast["speed"] == 5  # the median of 4, 6 and 5
    assert (fast["least"], fast["most"], fast["ns_per_element"]) == (1, 10, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results", "nowhere"], "--results nowhere: no such folder"),
        (["--only", "nothing"], "--only nothing: must be one of"),
    ],
)
def test_refused(command, arguments, message):
    with pytest.raises(UserError, match=message):
        command(*arguments)


def test_functions_beside_what_people_write(monkeypatch, tmp_path, capsys):
    path = tmp_path / "functions.json"
    argv = ["bench_functions", "--smoke", "--repetitions", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", argv)
    bench_functions.main()
    result = json.loads(path.read_text())
    assert markdown(result) in capsys.readouterr().out
    assert len(result["rows"]) == len(bench_functions.ROWS)


@pytest.mark.parametrize(
    "row", bench_functions.ROWS, ids=lambda row: f"{row.name}, {row.peer_name}"
)
def test_both_sides_of_a_row_compute_the_same(row):
    if "entropy" in row.name or ("js" in row.name and "two" not in row.peer_name):
        pytest.skip("the peer is another function, whose time is the measure")
    leaves = row.leaves((6, 11))
    gradients = []
    for loss in (row.loss, row.peer):
        inputs = [leaf.double().requires_grad_() for leaf in leaves]
        gradients.append((loss(*inputs), *torch.autograd.grad(loss(*inputs), inputs)))
    for i, (ours, theirs) in enumerate(zip(*gradients, strict=True)):
        if "probs" in row.name and i:  # they differ off the simplex by a constant
            ours, theirs = (x - x.mean(-1, keepdim=True) for x in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
