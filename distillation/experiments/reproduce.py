"""All runs behind the tables of distillation/README.md.

``python -m distillation.experiments.reproduce``

The first seed's teacher becomes the committed one, which teaches all students but a few. Runs that
are finished are kept, one that was cut off is resumed, so that the command can be stopped and
called again.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from shared.errors import UserError
from shared.experiments.reproduce import is_finished, make_sure, recall
from shared.run.folder import read_metrics
from shared.run.report import write_model

PROGRAM = "distillation.train"
RUNS = Path("runs/reproduce-distillation")
RESULTS = Path("distillation/results")
RECORDS = RESULTS / "runs"
PRETRAINED = Path("distillation/pretrained")
SEEDS = (0, 1, 2)
TINY = {"30-30": SEEDS, "8-8": SEEDS[:1]}
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

# name of the runs: arguments, seeds. Names of one row differ by the seed at their end alone, which
# also stands for SEED in the arguments.
ROWS: dict[str, tuple[str, Sequence[int]]] = {
    "teacher": ("default --stages teacher", SEEDS),
    "default-soft": (f"{_TAUGHT} {_SHIFTED}", SEEDS),
    "default-hard": (_ALONE, SEEDS),
    "own-soft": (f"{_STUDENT} --teacher {RUNS}/teacher-seedSEED", SEEDS),
    "plain-soft": (f"{_TAUGHT} {_CLEAN}", SEEDS),
    "plain-hard": (f"{_ALONE} {_SHORT}", SEEDS),
    "without-3": (f"{_TAUGHT} {_SHORT} --targets clean --transfer 012456789", SEEDS),
    "only-78": (f"{_TAUGHT} {_PLAIN} --targets clean --epochs 60 --transfer 78", SEEDS),
}
for _layers, _seeds in TINY.items():
    _tiny = f"--student-layers {_layers}"
    ROWS[f"{_layers}-hard"] = (f"{_ALONE} {_SHORT} {_tiny}", _seeds)
    for _t in TEMPERATURES:
        ROWS[f"{_layers}-T{_t}"] = (f"{_TAUGHT} {_CLEAN} {_tiny} --temperature {_t}", _seeds)
ROWS |= {
    "mlp-teacher": (f"{_MLP} --teacher-epochs 25", (0,)),
    "mlp-soft": (f"{_STUDENT} --teacher {RUNS}/mlp-teacher-seed0 --targets clean {_SHORT}", (0,)),
}
for _t in TEMPERATURES[:-1]:
    ROWS[f"800-800-T{_t}"] = (f"{_TAUGHT} {_CLEAN} --temperature {_t}", (0,))
for _objective in OBJECTIVES:
    ROWS[_objective] = (f"{_TAUGHT} {_CLEAN} --objective {_objective}", (0,))
ROWS |= {
    "self-teacher": ("self --stages teacher", (0,)),
    "self-student": (f"self --stages student --teacher {RUNS}/self-teacher-seed0", (0,)),
    "long-soft": (f"{_TAUGHT} {_SHIFTED} {_LONG}", SEEDS),
    "long-hard": (f"{_ALONE} {_LONG}", SEEDS),
}

COMMANDS = {
    f"{name}-seed{seed}": f"{arguments} --seed SEED".replace("SEED", str(seed))
    for name, (arguments, seeds) in ROWS.items()
    for seed in seeds
}


@dataclass(frozen=True)
class Options:
    """Train everything and write distillation/results and distillation/pretrained anew."""

    only: str = ""
    """Train only the runs whose names begin so; results are not written."""
    missing: bool = False
    """Train only the runs that have no committed record, and what these learn from; the committed
    teacher stays."""
    collect: bool = False
    """Train nothing: write the results of the runs that are there or have a record."""


def known(run: str) -> dict[str, Any] | None:
    """What a run came to, if it is finished or has a record."""
    return recall(PROGRAM, COMMANDS[run], RUNS / run, RECORDS)


def read(name: str) -> list[dict[str, Any]]:
    """The runs of a row, each with what its network reached on the test digits."""
    runs = [run for seed in ROWS[name][1] if (run := known(f"{name}-seed{seed}"))]
    return [{**run, **run["unseen"]["teacher" if "teacher" in name else "student"]} for run in runs]


def to_train(options: Options) -> list[str]:
    """The names of the runs to train, in order.

    Raises:
        UserError: no name begins with ``--only``.
    """
    names = [name for name in COMMANDS if name.startswith(options.only)]
    if not names:
        raise UserError(f"--only {options.only}: no run's name begins so; {', '.join(ROWS)}")
    if options.missing:
        names = [name for name in names if not known(name)]
        needed = {word for name in names for word in COMMANDS[name].split()}
        names = [n for n in COMMANDS if n in names or str(RUNS / n) in needed]
    return names


def publish(name: str, run: str, teacher: Classifier | None = None) -> Classifier:
    """A run's network to distillation/pretrained, matrices in half precision.

    Its metrics are measured anew, on the rounded weights. Returns what loading it gives.
    """
    data = split(load_mnist(Path("data")), validation=0, train_size=0, test_size=0)
    model, about = load(RUNS / run)
    about["config"] |= {"teacher": "pretrained" if teacher else "", "teacher_logits": ""}
    model.linear.half().float()
    found = evaluate(model, teacher, data, about)
    found["training_seconds"] = about["metrics"]["training_seconds"]
    model.linear.half()
    about |= {"metrics": found}
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


def main() -> None:
    options = cli.check(
        cli.parse(Options, sys.argv[1:], "python -m distillation.experiments.reproduce")
    )
    for name in to_train(options) if not options.collect else []:
        make_sure(PROGRAM, COMMANDS[name], RUNS / name)
        if name == TEACHER:  # before anybody learns from it
            publish("teacher", name)
    if not options.only:
        tables.write(read, RESULTS)
        publish_results()
        print(f"results in {RESULTS}, models in {PRETRAINED}; now: make tables")


if __name__ == "__main__":
    cli.run(main, "distillation.experiments.reproduce")
