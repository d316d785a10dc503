"""The tables of distillation/README.md, from the runs of ``distillation.experiments.reproduce``."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from distillation import pictures
from shared.experiments.tables import write_result

Read = Callable[[str], list[dict[str, Any]]]  # name of a row -> its runs, one a seed

TEMPERATURES = (1, 2, 3, 4, 8, 20)
STUDENTS = ("800-800", "30-30", "8-8")
HINTON = "Hinton et al. 2015, section 3"


def over_seeds(runs: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    """Mean and standard deviation of a metric, with provenance."""
    values = [run[key] for run in runs]
    kept = {name: runs[0][name] for name in ("command", "digits", "environment", "threads")}
    return kept | {
        "value": mean(values),
        "spread": stdev(values) if len(values) > 1 else None,
        "values": values,
        "n": len(values),
        "seconds": mean(run["training_seconds"] for run in runs),
        "nll": mean(run["nll"] for run in runs),
        "calibration_error": mean(run["calibration_error"] for run in runs),
    }


_COLUMNS = [
    ("what", "network", ""),
    ("value", "errors of 10,000", ".1f"),
    ("spread", "±", ".1f"),
    ("n", "seeds", "d"),
    ("reference", "paper", "d"),
    ("nll", "NLL, nats", ".4f"),
    ("calibration_error", "calibration error", ".4f"),
    ("augmentation", "jitter, px", "d"),
    ("epochs", "epochs", "d"),
    ("seconds", "training, s", ".0f"),
]


def headline(read: Read) -> Iterator[dict[str, Any]]:
    """Teachers, students alone and distilled, with the paper's numbers beside them."""
    rows: list[tuple[str, str, int | None]] = [
        ("teacher", "teacher, convolutional 16-32-32", 67),
        ("mlp-teacher", "teacher, MLP 1200-1200, dropout 0.25", 67),
        ("plain-hard", "student 800-800 alone", 146),
        ("plain-soft", "student 800-800, distilled", 74),
        ("mlp-soft", "student 800-800, distilled from the MLP", 74),
        ("default-hard", "student alone, jittered (`make distill`)", None),
        ("default-soft", "student distilled, jittered (`make distill`)", None),
        ("own-soft", "the same, each by the teacher of its own seed", None),
        ("long-hard", "student alone, jittered, 100 epochs at 1e-3", None),
        ("long-soft", "student distilled, jittered, 100 epochs at 1e-3", None),
        ("self-teacher", "800-800 alone, the teacher of the next", None),
        ("self-student", "800-800, distilled from its like", None),
    ]
    for name, what, reference in rows:
        runs = read(name)
        if not runs:
            continue
        config = runs[0]["recipe"]
        yield {
            "what": what,
            "reference": reference,
            "source": HINTON if reference else None,
            "augmentation": config["jitter"],
            "epochs": config["epochs"],
            **over_seeds(runs, "errors"),
        }
        if name == "teacher":
            shifts = runs[0]["averaged_over_shifts"]
            yield {
                "what": f"the same, logits averaged over {shifts} shifts",
                **over_seeds(runs, "averaged_errors"),
                "nll": None,
                "calibration_error": None,
                "seconds": None,
            }


def temperatures(read: Read) -> Iterator[dict[str, Any]]:
    """Errors of students of three sizes over T."""
    plain = {"800-800-hard": "plain-hard", "800-800-T20": "plain-soft"}  # rows of the headline
    for layers in STUDENTS:
        for t in (None, *TEMPERATURES):
            name = f"{layers}-hard" if t is None else f"{layers}-T{t}"
            if runs := read(plain.get(name, name)):
                yield {"layers": layers, "temperature": t, **over_seeds(runs, "errors")}


def objectives(read: Read) -> Iterator[dict[str, Any]]:
    """The divergences at T = 20, first seed."""
    rows = {
        "plain-hard": "labels alone",
        "plain-soft": "KL(teacher ‖ student)",
        "reverse": "KL(student ‖ teacher)",
        "js": "Jensen-Shannon",
        "skew": "skew KL, 0.1",
        "decoupled": "decoupled, weight 8",
    }
    for name, what in rows.items():
        if runs := read(name)[:1]:
            divergences = {key: runs[0].get(key) for key in ("kl_teacher_student", "agreement")}
            yield {"what": what, **over_seeds(runs, "errors"), **divergences}


def transfer(read: Read) -> Iterator[dict[str, Any]]:
    """Errors without some classes in the transfer set, before and after the bias correction."""
    papers: dict[str, dict[str, tuple[int, int | None]]] = {
        "without-3": {"raw": (206, 133), "best_on_test": (109, 14)},
        "only-78": {"raw": (4730, None), "best_on_test": (1320, None)},
    }
    ways = {
        "raw": "as trained",
        "prior_matching": "biases matched to the prior, no labels",
        "best_on_test": "one bias chosen on the test labels (paper)",
    }
    for name, what in (("without-3", "no 3s"), ("only-78", "only 7s and 8s")):
        runs = read(name)
        for way, description in ways.items() if runs else []:
            each = [run | run["corrected"][way] for run in runs]
            reference, of_missing = papers[name].get(way, (None, None))
            yield {
                "what": what,
                "way": description,
                "reference": reference,
                "reference_of_missing": of_missing,
                "of_missing": mean(run["errors_on_missing"] for run in each),
                "missing_digits": runs[0]["corrected"]["digits_of_missing"],
                **over_seeds(each, "errors"),
            }


def write(read: Read, results: Path) -> None:
    """All tables and the picture of the temperatures, from the runs that are there."""
    write_result(results / "headline.json", _COLUMNS, list(headline(read)))
    swept = list(temperatures(read))
    columns = [
        ("layers", "student", ""),
        ("temperature", "T (none: labels alone)", "d"),
        ("value", "errors of 10,000", ".1f"),
        ("spread", "±", ".1f"),
        ("n", "seeds", "d"),
    ]
    write_result(results / "temperatures.json", columns, swept)
    if swept:
        pictures.temperatures(swept, results / "temperatures.png")
    columns = [
        ("what", "objective", ""),
        ("value", "errors of 10,000", ".0f"),
        ("nll", "NLL, nats", ".4f"),
        ("kl_teacher_student", "KL(teacher ‖ student), nats", ".4f"),
        ("agreement", "agreement", ".2%"),
    ]
    write_result(results / "objectives.json", columns, list(objectives(read)))
    columns = [
        ("what", "transfer set", ""),
        ("way", "biases", ""),
        ("value", "errors of 10,000", ".0f"),
        ("spread", "±", ".0f"),
        ("of_missing", "on classes never seen", ".0f"),
        ("reference", "paper", "d"),
        ("reference_of_missing", "paper, never seen", "d"),
        ("n", "seeds", "d"),
    ]
    write_result(results / "transfer.json", columns, list(transfer(read)))
