"""The program as a whole: exact resume in each stage, two processes, bad input."""

import shutil
from pathlib import Path

import pytest

from distillation.model import Classifier
from shared.run.checkpoint import write_folder
from shared.run.folder import write_json
from tests.helpers import (
    ROOT,
    TINY_DISTILL,
    Processes,
    Result,
    assert_nearly_same_run,
    assert_same_run,
    last_state,
    metrics,
    refused,
)

STAGES = {"teacher": "teacher", "baseline": "baseline", "student": "."}
OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "temperature": (["--temperature", "0"], ["--temperature 0", "> 0"]),
    "negative": (["--temperature", "-2"], ["--temperature -2", "> 0"]),
    "alpha": (["--alpha", "1.5"], ["--alpha 1.5", "<= 1"]),
    "alpha below": (["--alpha", "-0.1"], ["--alpha -0.1", ">= 0"]),
    "all at once": (
        ["--temperature", "0", "--alpha", "2", "--student-layers", "8x8", "--transfer", "3a"],
        ["--temperature 0", "--alpha 2", "--student-layers 8x8", "--transfer '3a'"],
    ),
    "jitter": (["--jitter", "3"], ["--jitter 3", "<= 2"]),
    "dropout": (["--dropout", "1"], ["--dropout 1", "below 1"]),
    "objective": (["--objective", "forwards"], ["--objective", "forward", "decoupled"]),
    "unknown": (["--temprature", "4"], ["--temprature", "did you mean --temperature"]),
    "no teacher": (["--stages", "student"], ["--stages student", "--teacher"]),
    "two teachers": (["--stages", "teacher", "--teacher", "x"], ["--teacher x"]),
    "missing teacher": (["--teacher", "/nowhere"], ["/nowhere"]),
    "empty transfer set": (["--transfer", "9", "--train-size", "1"], ["--transfer 9"]),
    "missing run": (["--resume", "/nowhere/run"], ["--resume /nowhere/run"]),
}


def train(processes: Processes, *argv: object, fault: str = "", ranks: int = 1) -> Result:
    return processes(*argv, program="distillation.train", fault=fault, ranks=ranks)


def same_everywhere(a: Path, b: Path) -> None:
    for stage in STAGES.values():
        assert_same_run(a / stage, b / stage)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> Path:
    run = tmp_path_factory.mktemp("distillation") / "whole"
    result = train(processes, *TINY_DISTILL, "--out", run)
    assert result.code == 0, result.err
    assert result.err == ""
    return run


@pytest.mark.parametrize("stage", STAGES)
def test_cut_in_the_middle_of_epoch_1(
    stage: str, whole: Path, tmp_path: Path, processes: Processes
) -> None:
    cut = tmp_path / "cut"
    name = "cut" if stage == "student" else stage
    fault = f"signal:SIGTERM:5:0:{name}"
    stopped = train(processes, *TINY_DISTILL, "--out", cut, fault=fault)
    assert stopped.code == 143
    assert stopped.err.strip().endswith(f"--resume {cut}")
    assert (cut / STAGES[stage] / "checkpoints/step-00000005").is_dir()
    assert not (cut / "model").exists()
    assert train(processes, "--resume", cut).code == 0
    same_everywhere(whole, cut)
    assert (cut / "model/manifest.json").exists()
    assert (cut / "pictures/dark_knowledge.png").exists()


@pytest.mark.parametrize("fault", ["die:manifest.json:step-00000003", "signal:SIGKILL:2:0:cut"])
def test_killed_before_a_stages_first_checkpoint(
    fault: str, whole: Path, tmp_path: Path, processes: Processes
) -> None:
    cut = tmp_path / "cut"
    assert train(processes, *TINY_DISTILL, "--out", cut, fault=fault).code == -9
    assert train(processes, "--resume", cut).code == 0
    same_everywhere(whole, cut)


def test_seeds_differ(whole: Path, tmp_path: Path, processes: Processes) -> None:
    """So that the comparisons above can fail."""
    other = tmp_path / "other"
    assert train(processes, *TINY_DISTILL, "--seed", "1", "--out", other).code == 0
    for stage in STAGES.values():
        with pytest.raises(AssertionError):
            assert_same_run(whole / stage, other / stage)


def test_baseline_and_student_differ_in_the_loss_alone(
    whole: Path, tmp_path: Path, processes: Processes
) -> None:
    run = tmp_path / "alone"
    argv = [*TINY_DISTILL, "--stages", "student", "--alpha", "0", "--out", run]
    assert train(processes, *argv).code == 0
    assert_same_run(whole / "baseline", run)
    taught = tmp_path / "taught"
    argv = [*TINY_DISTILL, "--stages", "student", "--teacher", whole / "teacher", "--out", taught]
    assert train(processes, *argv).code == 0
    assert_same_run(whole, taught)


def both(processes: Processes, folder: Path, *argv: object) -> tuple[Path, Path]:
    """The same run on one process and on two."""
    one, two = folder / "one", folder / "two"
    assert train(processes, *TINY_DISTILL, *argv, "--out", one).code == 0
    result = train(processes, *TINY_DISTILL, *argv, "--out", two, ranks=2)
    assert result.codes == [0, 0], result.errs
    assert result.errs == ["", ""]
    return one, two


def worst_gradient(one: Path, two: Path) -> float:
    """Largest difference in Adam's averages of the gradients, as a share of the largest value."""
    ours, theirs = last_state(one)[1], last_state(two)[1]
    averages = [name for name in ours if name.endswith("exp_avg")]
    assert averages
    return max(
        ((ours[name] - theirs[name]).abs().max() / ours[name].abs().max()).item()
        for name in averages
    )


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run)]


@pytest.mark.parametrize("case", ["forward", "decoupled"])
def test_two_processes_equal_one(
    case: str, whole: Path, tmp_path: Path, processes: Processes
) -> None:
    """51 digits in batches of 25: rows 13 + 12 twice, then 1 + 0."""
    argv = ["--train-size", "51", "--objective", case, "--alpha", "0.7"]
    one, two = both(processes, tmp_path, "--teacher", whole / "teacher", *argv)
    for stage in ("baseline", "."):
        ours, theirs = last_state(one / stage)[0], last_state(two / stage)[0]
        assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-4
        assert worst_gradient(one / stage, two / stage) < 1e-3
        assert losses(one / stage) == pytest.approx(losses(two / stage), rel=1e-5)


def test_two_processes_equal_one_with_batch_norm_and_dropout(
    tmp_path: Path, processes: Processes
) -> None:
    """The first gradient; later rounding tips a maximum or a ReLU, and gradients jump there."""
    argv = ["--stages", "teacher", "--dropout", "0.5", "--input-dropout", "0.2"]
    first = both(processes, tmp_path, *argv, "--train-size", "25", "--teacher-epochs", "1")
    assert worst_gradient(*first) < 1e-3
    assert losses(first[0]) == pytest.approx(losses(first[1]), rel=1e-5)
    uneven = both(processes, tmp_path / "uneven", *argv, "--train-size", "51")
    assert losses(uneven[0]) == pytest.approx(losses(uneven[1]), rel=1e-3)


def test_two_processes_stop_and_resume(tmp_path: Path, processes: Processes) -> None:
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    assert train(processes, *TINY_DISTILL, "--out", straight, ranks=2).codes == [0, 0]
    fault = "signal:SIGTERM:5:1:baseline"
    stopped = train(processes, *TINY_DISTILL, "--out", cut, ranks=2, fault=fault)
    assert stopped.codes == [143, 143]
    assert train(processes, "--resume", cut, ranks=2).codes == [0, 0]
    same_everywhere(straight, cut)


def test_fully_sharded_equals_one(whole: Path, tmp_path: Path, processes: Processes) -> None:
    """Every stage; FSDP 2 as in shared/processes/fsdp.yaml."""
    argv = [*TINY_DISTILL, "--teacher", whole / "teacher"]
    assert train(processes, *argv, "--out", tmp_path / "one").code == 0
    result = train(processes, *argv, "--out", tmp_path / "two", ranks=2, fault="fsdp")
    assert result.codes == [0, 0], result.errs
    for stage in ("baseline", "."):
        assert_nearly_same_run(tmp_path / "one" / stage, tmp_path / "two" / stage)


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, processes: Processes) -> None:
    argv, words = OPTIONS[case]
    before = sorted((ROOT / "runs").glob("distillation-*"))
    argv = argv if case == "missing run" else ["smoke", *argv]
    refused(train(processes, *argv), *words)
    assert sorted((ROOT / "runs").glob("distillation-*")) == before


def test_a_foreign_cache_is_refused(whole: Path, tmp_path: Path, processes: Processes) -> None:
    cache = whole / "teacher_logits.safetensors"
    argv = [*TINY_DISTILL, "--teacher", whole / "teacher", "--stages", "student"]
    argv += ["--teacher-logits", cache]
    for changed in (
        ["--train-size", "50"],
        ["--targets", "matching"],
        ["--transfer", "78"],
        ["--teacher", str(whole / "baseline")],
    ):
        result = train(processes, *argv, *changed, "--out", tmp_path / "run")
        refused(result, f"--teacher-logits {cache}", "another teacher, other data")
        shutil.rmtree(tmp_path / "run")
    assert train(processes, *argv, "--out", tmp_path / "run").code == 0


def test_a_teacher_of_other_classes(whole: Path, tmp_path: Path, processes: Processes) -> None:
    def write(folder: Path) -> None:
        Classifier("conv-2-3-2", classes=7).save_pretrained(folder)
        shutil.copy(whole / "teacher/model/training.json", folder)

    write_folder(tmp_path / "seven", write)
    argv = [*TINY_DISTILL, "--teacher", tmp_path / "seven", "--out", tmp_path / "run"]
    refused(train(processes, *argv), tmp_path / "seven", "7 classes", "10")
    assert not (tmp_path / "run").exists()


def test_a_stage_is_resumed_with_its_run(whole: Path, processes: Processes) -> None:
    result = train(processes, "--resume", whole / "teacher")
    refused(result, f"--resume {whole / 'teacher'}", f"--resume {whole}")


def test_a_finished_run_is_resumed_to_itself(
    whole: Path, tmp_path: Path, processes: Processes
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    assert train(processes, "--resume", run).code == 0
    same_everywhere(whole, run)
    refused(train(processes, "--resume", run, "--temperature", "3"), "--temperature is 20.0")


def test_a_step_that_is_not_applied_leaves_no_trace(
    whole: Path, tmp_path: Path, processes: Processes
) -> None:
    """The forward pass of that step has moved the running statistics of the normalisation."""
    cut = tmp_path / "cut"
    argv = [*TINY_DISTILL, "--stages", "teacher", "--out", cut]
    refused(train(processes, *argv, fault="nan:5"), "gradient norm nan at step 4: not applied")
    assert train(processes, "--resume", cut).code == 0
    assert_same_run(whole / "teacher", cut)


def test_divergence_is_one_line(tmp_path: Path, processes: Processes) -> None:
    argv = [*TINY_DISTILL, "--teacher-lr", "1e30", "--out", tmp_path / "run"]
    refused(train(processes, *argv), "loss", "not applied", "--lr")


def test_a_damaged_teacher_is_named(whole: Path, tmp_path: Path, processes: Processes) -> None:
    model = Path(shutil.copytree(whole / "teacher" / "model", tmp_path / "model"))
    write_json(model / "training.json", {})
    refused(train(processes, *TINY_DISTILL, "--teacher", model), model / "training.json", "damaged")
