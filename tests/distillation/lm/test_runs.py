"""The program as a whole: exact resume, two processes, accumulation, bad input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tests.helpers import (
    Processes,
    Result,
    assert_nearly_same_run,
    assert_same_run,
    metrics,
    refused,
)

# 18 training documents; batches of 5, 5, 1 blocks an epoch; on two processes 3 + 2 and 1 + 0.
TINY = """
    smoke --layers 0 --length 8 --epochs 2 --epoch-blocks 11 --batch-size 5 --micro-batch 2
    --evaluation-blocks 4 --warmup 2 --mixed-precision no
""".split()
CASES = {
    "forward": [],
    "reverse": ["--objective", "reverse", "--train-embeddings", "--temperature", "2"],
    "js": ["--objective", "js", "--logits", "full"],
    "skew": ["--objective", "skew", "--prompt", "3"],
    "ce": ["--objective", "ce", "--train-embeddings"],
    "topk": ["--logits", "topk", "--topk", "5", "--temperature", "2"],
    "teacher": ["--completions", "teacher", "--prompt", "3"],
    "on-policy": ["--on-policy", "0.5", "--prompt", "3", "--objective", "reverse"],
}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a tiny teacher, a text and a data folder."""
    root = tmp_path_factory.mktemp("lm")
    teacher, text = tiny.write_model(root / "teacher"), tiny.write_texts(root / "text")
    return ["--teacher", str(teacher), "--text", str(text), "--data", str(root / "data")]


def train(processes: Processes, *argv: object, fault: str = "", ranks: int = 1) -> Result:
    offline = {"HF_HUB_OFFLINE": "1"}
    program = "distillation.lm.train"
    return processes(*argv, program=program, fault=fault, ranks=ranks, env=offline)


@pytest.fixture(scope="module")
def whole(there: list[str], tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> Path:
    run = tmp_path_factory.mktemp("lm") / "whole"
    result = train(processes, *TINY, *there, "--out", run)
    assert result.code == 0, result.err
    assert result.err == ""
    return run


def test_what_a_run_leaves(whole: Path) -> None:
    assert [line["step"] for line in metrics(whole)] == [3, 6]
    assert {p.name for p in whole.iterdir()} == set(
        """
        config.json env.json metrics.jsonl summary.json checkpoints model pictures
    """.split()
    )
    unseen = json.loads((whole / "summary.json").read_text())["unseen"]
    model = AutoModelForCausalLM.from_pretrained(whole / "model")
    AutoTokenizer.from_pretrained(whole / "model")
    assert model.config.num_hidden_layers == 1
    assert unseen["student"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert "KL(teacher || student)" in (whole / "model" / "README.md").read_text()


@pytest.mark.parametrize("case", ["forward", "on-policy", "teacher"])
def test_cut_in_the_middle_of_epoch_1(
    case: str, there: list[str], tmp_path: Path, processes: Processes
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    argv = [*TINY, *there, *CASES[case]]
    assert train(processes, *argv, "--out", whole).code == 0
    stopped = train(processes, *argv, "--out", cut, fault="signal:SIGTERM:5")
    assert stopped.code == 143
    progress = json.loads((cut / "checkpoints/step-00000005/progress.json").read_text())
    assert (progress["epoch"], progress["steps_in_epoch"]) == (1, 2)
    assert train(processes, "--resume", cut).code == 0
    assert_same_run(whole, cut)


WITH_TRL = """
    --backend trl --on-policy 1 --prompt 3 --epoch-blocks 12 --batch-size 4
""".split()


@pytest.mark.parametrize("ranks", [1, 2])
def test_trls_trainer_cut_and_resumed(
    ranks: int, there: list[str], tmp_path: Path, processes: Processes
) -> None:
    """Samples are TRL's, of every process its own: one run is not the other's."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    argv = [*TINY, *there, *WITH_TRL]
    ended = train(processes, *argv, "--out", whole, ranks=ranks)
    assert ended.codes == [0] * ranks, ended.errs
    stopped = train(processes, *argv, "--out", cut, fault="signal:SIGTERM:5", ranks=ranks)
    assert stopped.codes == [143] * ranks, stopped.errs
    assert train(processes, "--resume", cut, ranks=ranks).codes == [0] * ranks

    lines = [[line | {"step_time": 0} for line in metrics(run)] for run in (whole, cut)]
    assert lines[0] == lines[1]
    measured = [line for line in lines[0] if "unseen_kl_teacher_student" in line]
    assert [line["step"] for line in measured] == [3, 6]
    assert [line["tokens"] for line in measured] == [
        pytest.approx(4 * sum(line["completions/mean_length"] for line in part) / 3)
        for part in (lines[0][:3], lines[0][3:])
    ]
    ends = [load_file(run / "checkpoints/step-00000006/model.safetensors") for run in (whole, cut)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())
    trained = load_file(whole / "model/model.safetensors")
    assert all(torch.equal(weight, ends[0][name]) for name, weight in trained.items())
    assert (whole / "pictures/curves.png").exists()


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(
    case: str, there: list[str], tmp_path: Path, processes: Processes
) -> None:
    runs = []
    for ranks in (1, 2):
        runs.append(tmp_path / str(ranks))
        argv = [*TINY, *there, *CASES[case], "--out", runs[-1]]
        result = train(processes, *argv, ranks=ranks)
        assert result.codes == [0] * ranks, result.errs
    assert_nearly_same_run(*runs)


def test_fully_sharded_equals_one_and_resumes(
    whole: Path, there: list[str], tmp_path: Path, processes: Processes
) -> None:
    """Layer by layer, embeddings and output weights as one; FSDP 2 as in fsdp.yaml."""
    sharded, cut = tmp_path / "sharded", tmp_path / "cut"
    result = train(processes, *TINY, *there, "--out", sharded, ranks=2, fault="fsdp")
    assert result.codes == [0, 0], result.errs
    assert_nearly_same_run(whole, sharded)
    fault = "fsdp;signal:SIGTERM:5"
    stopped = train(processes, *TINY, *there, "--out", cut, ranks=2, fault=fault)
    assert stopped.codes == [143, 143], stopped.errs
    assert train(processes, "--resume", cut, ranks=2, fault="fsdp").codes == [0, 0]
    assert_same_run(sharded, cut)
    sampling = [*TINY, *there, *CASES["on-policy"], "--out", tmp_path / "sampling"]
    refused(train(processes, *sampling, ranks=2, fault="fsdp"), "--on-policy: samples from whole")


@pytest.mark.parametrize("case", ["forward", "skew"])
def test_accumulated_equals_one_big_batch(
    case: str, there: list[str], tmp_path: Path, processes: Processes
) -> None:
    """Blocks differ in the number of tokens that count, so a mean of means would differ."""
    for size in (1, 5):
        argv = [*TINY, *there, *CASES[case], "--micro-batch", size, "--out", tmp_path / str(size)]
        assert train(processes, *argv).code == 0
    assert_nearly_same_run(tmp_path / "1", tmp_path / "5")


def test_the_teacher_writes_only_what_the_run_gets_to(
    there: list[str], tmp_path: Path, processes: Processes
) -> None:
    """7 of the 18 blocks in the first of two epochs and 7 more in the second, from one file."""
    data = tmp_path / "data"
    argv = [*TINY, *there, *CASES["teacher"], "--data", data, "--epoch-blocks", "7"]
    told = [train(processes, *argv, "--out", tmp_path / name).out for name in ("first", "second")]
    assert ["the teacher writes 14 texts" in out for out in told] == [True, False]
    (file,) = data.glob("distill-lm-texts-*")
    assert load_file(file)["texts"].shape == (14, 9)
    assert "data     14 blocks" in told[0]
    assert_same_run(tmp_path / "first", tmp_path / "second")


def test_cached_equals_live(
    whole: Path, there: list[str], tmp_path: Path, processes: Processes
) -> None:
    cache = tmp_path / "answers.safetensors"
    argv = [*TINY, *there, "--teacher-cache", cache]
    for name in ("writes it", "reads it"):
        assert train(processes, *argv, "--out", tmp_path / name).code == 0
        assert_nearly_same_run(whole, tmp_path / name)
    refused(
        train(processes, *argv, "--length", "9", "--out", tmp_path / "other"),
        f"--teacher-cache {cache}",
        "belongs to another teacher, other data",
    )


def test_an_evaluation_says_what_training_said(
    whole: Path, there: list[str], tmp_path: Path, processes: Processes
) -> None:
    out = tmp_path / "new" / "result.json"
    argv = ["--model", whole, "--blocks", "4", "--length", "8", "--json", out, *there[2:]]
    result = processes(*argv, program="distillation.lm.evaluate")
    assert result.code == 0, result.err
    assert result.err == ""
    found = json.loads(out.read_text())["metrics"]
    said = json.loads((whole / "summary.json").read_text())["unseen"]
    for name in ("kl_teacher_student", "kl_student_teacher", "agreement", "perplexity_student"):
        assert found[name] == pytest.approx(said[name], rel=1e-5)
    assert len(found["continuations"]) == 2


OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "temperature": (["--temperature", "0"], ["--temperature 0", "> 0"]),
    "all at once": (
        ["--temperature", "-1", "--layers", "3-", "--prompt", "99"],
        ["--temperature -1", "--layers '3-'", "--prompt 99: must be below --length"],
    ),
    "layers": (["--layers", "0,2"], ["--layers", "the teacher has the layers 0-1"]),
    "topk": (["--logits", "topk", "--topk", "999"], ["--topk 999", str(tiny.VOCABULARY)]),
    "topk of reverse": (["--logits", "topk", "--objective", "js"], ["--logits topk", "js"]),
    "no prompt": (["--on-policy", "1"], ["--prompt 0"]),
    "on-policy ce": (["--on-policy", "1", "--objective", "ce", "--prompt", "2"], ["objective ce"]),
    "share": (["--on-policy", "1.5"], ["--on-policy 1.5", "<= 1"]),
    "trl": (["--backend", "trl"], ["--backend trl needs 1"]),
    "trl batch": (
        ["--backend", "trl", "--on-policy", "1", "--prompt", "3"],
        ["--batch-size 5", "multiple of"],
    ),
    "trl muon": (["--backend", "trl", "--optimizer", "muon"], ["--backend trl has adam"]),
    "teacher": (["--teacher", "nobody/nothing"], ["--teacher nobody/nothing", "the Hub"]),
    "student": (["--student", "nobody/nothing"], ["--student nobody/nothing", "the Hub"]),
    "text": (["--text", "nobody/nothing"], ["--text nobody/nothing", "the Hub"]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, there: list[str], tmp_path: Path, processes: Processes) -> None:
    argv, words = OPTIONS[case]
    refused(train(processes, *TINY, *there, *argv, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_another_vocabulary(there: list[str], tmp_path: Path, processes: Processes) -> None:
    other = tiny.write_model(tmp_path / "other", vocabulary=tiny.VOCABULARY + 7)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    result = train(processes, *TINY, *there, "--student", other, "--out", tmp_path / "run")
    refused(result, f"--student {other}: its tokenizer is not the teacher's")
    assert not (tmp_path / "run").exists()


def test_a_student_with_a_padded_vocabulary(
    there: list[str], tmp_path: Path, processes: Processes
) -> None:
    other = tiny.write_model(tmp_path / "other", vocabulary=tiny.VOCABULARY + 7)
    options = [*TINY, *there, "--epochs", 1, "--student", other, "--out", tmp_path / "run"]
    result = train(processes, *options)
    assert result.code == 0, result.err
    assert f"the first {tiny.VOCABULARY} tokens, which both models predict" in result.out


def test_models_that_cannot_be_evaluated(
    whole: Path, there: list[str], tmp_path: Path, processes: Processes
) -> None:
    run, out = Path(shutil.copytree(whole, tmp_path / "run")), tmp_path / "out"

    def evaluate(*argv: object) -> Result:
        return processes(*argv, "--json", out, *there[2:], program="distillation.lm.evaluate")

    refused(evaluate("--model", "/nowhere/model"), "/nowhere/model")
    weights = run / "model" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights, {"format": "pt"})
    refused(evaluate("--model", run), weights, "damaged")
    assert torch.is_tensor(tensors["model.norm.weight"])
    assert not out.exists()


def test_one_short_held_out_document_is_enough(
    there: list[str], tmp_path: Path, processes: Processes
) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(" ".join(tiny.WORDS) + "\n \n" + " ".join(tiny.WORDS[:6]))
    options = "--epochs 1 --epoch-blocks 2 --batch-size 1 --micro-batch 1 --warmup 1".split()
    result = train(processes, *TINY, *options, *there, "--text", text, "--out", run)
    assert result.code == 0, result.err
    (line,) = (run / "metrics.jsonl").read_text().splitlines()
    parsed = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert parsed["unseen_kl_teacher_student_standard_error"] is None
    assert json.loads((run / "summary.json").read_text())["unseen"]["documents"] == 1


def test_tokens_without_embeddings_are_refused_before_training(
    there: list[str], tmp_path: Path, processes: Processes
) -> None:
    teacher = tiny.write_model(tmp_path / "teacher", vocabulary=tiny.VOCABULARY - 1)
    tiny.tokenizer().save_pretrained(teacher)
    result = train(processes, *TINY, *there, "--teacher", teacher, "--out", tmp_path / "run")
    refused(result, f"--teacher {teacher}: its tokenizer has tokens up to number")
    assert not (tmp_path / "run").exists()
