"""All runs behind the tables of distillation/README.md.

``python -m distillation.experiments.reproduce``

The first seed's teacher becomes the committed one, which teaches all students but a few. Runs that
are finished are kept, one that was cut off is resumed, so that the command can be stopped and
called again.
"""

import shutil
from pathlib import Path

from distillation import pictures
from distillation.evaluate import evaluate
from distillation.experiments import tables
from distillation.experiments.tables import TEMPERATURES
from distillation.model import Classifier
from distillation.report import card
from distillation.teacher import load
from shared import cli
from shared.data.mnist import load_mnist
from shared.data.splits import split
from shared.experiments.reproduce import Options, Record, Reproduction, Row, is_finished
from shared.run.folder import read_metrics
from shared.run.report import write_model

PROGRAM = "distillation.train"
RUNS = Path("runs/reproduce-distillation")
RESULTS = Path("distillation/results")
PRETRAINED = Path("distillation/pretrained")
SEEDS = (0, 1, 2)
FIRST = SEEDS[:1]
TINY = {"30-30": SEEDS, "8-8": FIRST}
TEACHER, STUDENT = "teacher-seed0", "default-soft-seed0"  # the networks that are committed
OBJECTIVES = ("reverse", "js", "skew", "decoupled")

_STUDENT = "default --stages student --checkpoint-every 5"
_TAUGHT = f"{_STUDENT} --teacher pretrained"  # the first seed's, as it is committed
_ALONE = f"{_STUDENT} --alpha 0"
_PLAIN = "--jitter 0 --lr 1e-3"
_SHORT = f"{_PLAIN} --epochs 20"
_CLEAN = f"{_SHORT} --targets clean --teacher-logits {RUNS}/clean.safetensors"
_SHIFTED = f"--teacher-logits {RUNS}/averaged.safetensors"
_LONG = "--epochs 100 --lr 1e-3"
_MLP = "paper --stages teacher --dropout 0.25 --input-dropout 0"


def _row(arguments: str, seeds: tuple[int, ...] = SEEDS) -> Row:
    return Row(PROGRAM, f"{arguments} --seed SEED", seeds)


ROWS = {
    "teacher": _row("default --stages teacher"),
    "default-soft": _row(f"{_TAUGHT} {_SHIFTED}"),
    "default-hard": _row(_ALONE),
    "own-soft": _row(f"{_STUDENT} --teacher {RUNS}/teacher-seedSEED"),
    "plain-soft": _row(f"{_TAUGHT} {_CLEAN}"),
    "plain-hard": _row(f"{_ALONE} {_SHORT}"),
    "without-3": _row(f"{_TAUGHT} {_SHORT} --targets clean --transfer 012456789"),
    "only-78": _row(f"{_TAUGHT} {_PLAIN} --targets clean --epochs 60 --transfer 78"),
}
for _layers, _seeds in TINY.items():
    _tiny = f"--student-layers {_layers}"
    ROWS[f"{_layers}-hard"] = _row(f"{_ALONE} {_SHORT} {_tiny}", _seeds)
    for _t in TEMPERATURES:
        ROWS[f"{_layers}-T{_t}"] = _row(f"{_TAUGHT} {_CLEAN} {_tiny} --temperature {_t}", _seeds)
ROWS |= {
    "mlp-teacher": _row(f"{_MLP} --teacher-epochs 25", FIRST),
    "mlp-soft": _row(
        f"{_STUDENT} --teacher {RUNS}/mlp-teacher-seed0 --targets clean {_SHORT}", FIRST
    ),
}
for _t in TEMPERATURES[:-1]:
    ROWS[f"800-800-T{_t}"] = _row(f"{_TAUGHT} {_CLEAN} --temperature {_t}", FIRST)
for _objective in OBJECTIVES:
    ROWS[_objective] = _row(f"{_TAUGHT} {_CLEAN} --objective {_objective}", FIRST)
ROWS |= {
    "self-teacher": _row("self --stages teacher", FIRST),
    "self-student": _row(f"self --stages student --teacher {RUNS}/self-teacher-seed0", FIRST),
    "long-soft": _row(f"{_TAUGHT} {_SHIFTED} {_LONG}"),
    "long-hard": _row(f"{_ALONE} {_LONG}"),
}
REPRODUCTION = Reproduction(ROWS, RUNS, RESULTS / "runs")


def read(row: str) -> list[Record]:
    """The runs of a row, each with its metrics on the test digits."""
    network = "teacher" if "teacher" in row else "student"
    return [{**run, **run["unseen"][network]} for run in REPRODUCTION.row_records(row)]


def publish(name: str, run: str, teacher: Classifier | None = None) -> Classifier:
    """A run's network to distillation/pretrained, matrices in half precision.

    Its metrics are measured again, on the rounded weights. Returns what loading it gives.
    """
    data = split(load_mnist(Path("data")), validation=0, train_size=0, test_size=0)
    model, about = load(RUNS / run)
    about["config"] |= {"teacher": "pretrained" if teacher else "", "teacher_logits": ""}
    model.linear.half().float()
    metrics = evaluate(model, teacher, data, about)
    metrics["training_seconds"] = about["metrics"]["training_seconds"]
    model.linear.half()
    about |= {"metrics": metrics}
    write_model(PRETRAINED / name, model.save_pretrained, card(about), training=about)
    model.linear.float()
    return model


def publish_results() -> None:
    """The committed networks and their pictures, of what is finished here."""
    if not (is_finished(RUNS / TEACHER) and is_finished(RUNS / STUDENT)):
        return
    publish("student", STUDENT, publish("teacher", TEACHER))
    shutil.copy(RUNS / TEACHER / "pictures" / "dark_knowledge.png", RESULTS)
    rows = {"baseline": STUDENT.replace("soft", "hard"), "student": STUDENT}
    records = {name: read_metrics(RUNS / run) for name, run in rows.items()}
    pictures.curves(
        {name: lines for name, lines in records.items() if lines}, RESULTS / "curves.png"
    )


def publish_teacher(run: str) -> None:
    """Commit the first teacher as soon as it is trained: the others' students learn from it."""
    if run == TEACHER:
        publish("teacher", run)


def main() -> None:
    options = cli.read_options(Options, "distillation.experiments.reproduce")
    names = REPRODUCTION.chosen(options)
    if not options.collect:
        REPRODUCTION.train(names, after=publish_teacher)
    if not options.only:
        tables.write(read, RESULTS)
        publish_results()
        print(f"results in {RESULTS}, models in {PRETRAINED}; now: make tables")


if __name__ == "__main__":
    cli.run(main, "distillation.experiments.reproduce")
