"""Figures in the READMEs' sentences are those of the committed results.

Only the figures and the words between them are compared; tables have a check of their own.
"""

import json

import pytest

from shared.experiments.tables import with_quotes
from tests.helpers import ROOT

TRL = "PPO of TRL 1.12.0"
SEPARATE = "PPO, separate critic"


def frontier(method: str, beta: float, key: str, form: str) -> str:
    return f"{{rlhf/results/frontier.json|method={method}&beta={beta}|{key}|{form}}}"


def best_of(n: int, key: str, form: str) -> str:
    return f"{{rlhf/results/best_of_n.json|best_of={n}|{key}|{form}}}"


def table1(constraint: str, key: str, form: str) -> str:
    return f"{{trpo_ppo/results/table1.json|what={constraint}|{key}|{form}}}"


def reached(method: str, beta: float) -> str:
    """Gold reward at a KL."""
    return f"{frontier(method, beta, 'gold', '.2f')} at {frontier(method, beta, 'kl', '.1f')}"


def spread(method: str, key: str, form: str) -> str:
    """Mean and standard deviation at beta = 0.1."""
    return f"{frontier(method, 0.1, key, form)} ± {frontier(method, 0.1, f'{key}_spread', form)}"


def each(method: str, key: str, form: str) -> str:
    """From the largest beta to the smallest."""
    largest, middle, least = (frontier(method, beta, key, form) for beta in (0.2, 0.1, 0.05))
    return f"{largest}, {middle} and {least}"


FIGURES = {
    "rlhf": [
        f"{frontier('PPO', 0.1, 'reference_gold', '.2f')} to {frontier('PPO', 0.1, 'gold', '.2f')}",
        reached("PPO", 0.2),
        reached("DPO", 0.3),
        f"{frontier('PPO', 0.05, 'gold', '.2f')} at {frontier('PPO', 0.05, 'kl', '.0f')}",
        f"{frontier('DPO', 0.1, 'gold', '.2f')} at {frontier('DPO', 0.1, 'kl', '.0f')}",
        f"{each('RLOO', 'kl', '.1f')} nats",
        each("PPO", "kl", ".1f"),
        f"{each('PPO', 'objective', '.2f')} beside {each('RLOO', 'objective', '.2f')}",
        f"{best_of(32, 'gold', '.2f')} at {best_of(32, 'kl', '.1f')} nats",
        *(spread(method, "gold", ".3f") for method in ("PPO", TRL, SEPARATE)),
        *(spread(method, "objective", ".2f") for method in ("PPO", TRL, SEPARATE)),
        "d* = {rlhf/results/overoptimisation.json|method=PPO, beta 0&reward=gold|peak|.1f}",
    ],
    "trpo_ppo": [
        f"{table1('no clipping or penalty', 'kl', '.0f')} nats",
        table1("no clipping or penalty", "kl_largest", ".0f"),
        table1("clipping, eps = 0.2", "kl_largest", ".2f"),
    ],
}


def text_of(application: str) -> str:
    """The application's README and that of its experiments, on one line."""
    folders = (ROOT / application, ROOT / application / "experiments")
    readmes = [folder / "README.md" for folder in folders if (folder / "README.md").exists()]
    return " ".join(" ".join(path.read_text() for path in readmes).split())


def test_figures_of_over_optimisation_are_the_record() -> None:
    record = json.loads((ROOT / "rlhf/results/runs/over-seed0.json").read_text())["records"]
    text = text_of("rlhf")
    for row in (record[20], record[-1]):
        assert f"{row['rewards/gold/mean']:.2f}" in text
        assert f"{row['objective/kl']:.0f} nats" in text


@pytest.mark.parametrize("application", FIGURES)
def test_figures_in_sentences_are_the_results(application: str) -> None:
    text = text_of(application)
    figures = [with_quotes(quote, ROOT) for quote in FIGURES[application]]
    assert [figure for figure in figures if figure not in text] == []
