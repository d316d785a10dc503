"""All runs behind the tables of distillation/lm/README.md.

``python -m distillation.lm.experiments.reproduce``

The same student, text, steps and learning rates; the objective alone differs. Runs that are
finished are kept, one that was cut off is resumed. About six hours of one core.
"""

import json
from pathlib import Path
from typing import Any

import torch

from distillation.lm import pictures
from distillation.lm.config import PRESETS
from distillation.lm.data import read_blocks
from distillation.lm.evaluate import evaluate
from distillation.lm.model import load, start_student
from shared import cli
from shared.experiments.reproduce import Options, Record, Reproduction, Row, read_config
from shared.experiments.tables import write_result
from shared.run.folder import read_metrics, write_json

PROGRAM = "distillation.lm.train"
RUNS = Path("runs/reproduce-distill-lm")
RESULTS = Path("distillation/lm/results")
ROWS = {
    "forward": Row(PROGRAM, "default"),
    "ce": Row(PROGRAM, "default --objective ce"),
    "reverse": Row(PROGRAM, "default --objective reverse"),
    "js": Row(PROGRAM, "default --objective js"),
}
COLUMNS = (
    ("what", "trained to minimise", ""),
    ("trained_on", "training tokens", ",d"),
    ("kl_teacher_student", "KL(teacher ‖ student)", ".3f"),
    ("kl_teacher_student_standard_error", "±", ".3f"),
    ("kl_student_teacher", "KL(student ‖ teacher)", ".3f"),
    ("kl_student_teacher_standard_error", "±", ".3f"),
    ("agreement", "same top token", ".1%"),
    ("perplexity_student", "perplexity", ".1f"),
    ("training_seconds", "training, s", ",.0f"),
)


def _details(folder: Path) -> Record:
    return {"config": read_config(folder), "records": read_metrics(folder)}


REPRODUCTION = Reproduction(ROWS, RUNS, RESULTS / "runs", _details)


def untrained() -> Record:
    """The student's distance from the teacher before any training, and the cost of either.

    Measured once: its record is kept with those of the runs.
    """
    path = REPRODUCTION.records / "untrained.json"
    if not path.is_file():
        config = PRESETS["default"]
        teacher, tokenizer = load("--teacher", config.teacher, Path(config.data))
        root = Path(config.data)
        student = start_student(config.student, config.layers, teacher, tokenizer, root)
        _, unseen = read_blocks(config, tokenizer)
        metrics = evaluate(student.eval(), teacher.eval(), tokenizer, unseen)
        write_json(path, {"threads": torch.get_num_threads(), "unseen": metrics})
    record: Record = json.loads(path.read_text())
    return record


def collect() -> None:
    """The table, the picture and the sizes and speeds of student and teacher."""
    finished = REPRODUCTION.complete_rows({name: [name] for name in ROWS})
    before = untrained()
    start = before["unseen"]
    rows: list[dict[str, Any]] = [{"what": "untrained", "trained_on": 0, "n": 1, **start}]
    curves = {}
    for name, (run,) in finished.items():
        config = run["config"]
        trained_on = config["epochs"] * config["epoch_blocks"] * config["length"]
        kept = {key: run[key] for key in ("command", "environment", "training_seconds", "threads")}
        what = pictures.NAMES[name]
        rows.append({"what": what, "trained_on": trained_on, "n": 1, **kept, **run["unseen"]})
        curves[name] = run["records"]
    for row in rows:
        row.pop("continuations", None)  # the runs' records keep them
    write_result(RESULTS / "objectives.json", COLUMNS, rows)
    pictures.curves(curves, RESULTS / "curves.png")
    columns = (
        ("who", "model", ""),
        ("parameters", "parameters", ",d"),
        ("weight_mebibytes", "weights, MiB", ",.0f"),
        ("tokens_read_per_second", "tokens read per CPU-s", ",.0f"),
        ("tokens_written_per_second", "tokens written per CPU-s", ",.0f"),
    )
    costs = [
        {"who": who, "weight_mebibytes": start[who]["weight_bytes"] / 2**20, **start[who]}
        for who in ("teacher", "student")
    ]
    write_result(RESULTS / "cost.json", columns, costs, threads=before["threads"])
    print(f"results in {RESULTS}; now: make tables")


def main() -> None:
    options = cli.read_options(Options, "distillation.lm.experiments.reproduce")
    names = REPRODUCTION.chosen(options)
    if not options.collect:
        REPRODUCTION.train(names)
    if not options.only:
        collect()


if __name__ == "__main__":
    cli.run(main, "distillation.lm.experiments.reproduce")
