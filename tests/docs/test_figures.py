"""Figures in the READMEs' sentences are those of the committed results; tables have a check of
their own."""

import json

import pytest

from shared.experiments.tables import with_quotes
from tests.helpers import ROOT


def frontier(method: str, beta: float, key: str, form: str) -> str:
    return f"{{rlhf/results/frontier.json|method={method}&beta={beta}|{key}|{form}}}"


def fit(key: str, form: str) -> str:
    wanted = "method=PPO, beta 0&reward=gold"
    return f"{{rlhf/results/overoptimisation.json|{wanted}|{key}|{form}}}"


def best_of(n: int, key: str, form: str) -> str:
    return f"{{rlhf/results/best_of_n.json|best_of={n}|{key}|{form}}}"


def table1(constraint: str, key: str, form: str) -> str:
    return f"{{trpo_ppo/results/table1.json|what={constraint}|{key}|{form}}}"


def reached(method: str, beta: float) -> str:
    """Gold reward at a KL."""
    return f"{frontier(method, beta, 'gold', '.2f')} at {frontier(method, beta, 'kl', '.1f')}"


def each(method: str, key: str, form: str) -> str:
    """From the largest beta to the smallest."""
    told = [frontier(method, beta, key, form) for beta in (0.2, 0.1, 0.05)]
    return f"{told[0]}, {told[1]} and {told[2]}"


TRL = "PPO of TRL 1.12.0"
SEPARATE = "PPO, separate critic"
SAID = {
    "rlhf/README.md": [
        f"takes the gold reward from {frontier('PPO', 0.1, 'reference_gold', '.2f')} to "
        f"{frontier('PPO', 0.1, 'gold', '.2f')}",
        f"at {frontier('PPO', 0.1, 'kl', '.0f')} nats.",
        f"{frontier('PPO', 0.2, 'gold', '.2f')} at {frontier('PPO', 0.2, 'kl', '.1f')} nats "
        f"against {reached('DPO', 0.3)}, {frontier('PPO', 0.05, 'gold', '.2f')} at "
        f"{frontier('PPO', 0.05, 'kl', '.0f')} against {frontier('DPO', 0.1, 'gold', '.2f')} at "
        f"{frontier('DPO', 0.1, 'kl', '.0f')}.",
        f"{each('RLOO', 'kl', '.1f')} nats where PPO goes {each('PPO', 'kl', '.1f')}",
        f"{each('PPO', 'objective', '.2f')} beside {each('RLOO', 'objective', '.2f')}.",
        f"{best_of(32, 'gold', '.2f')} at {best_of(32, 'kl', '.1f')} nats at most",
        f"{frontier('PPO', 0.1, 'gold', '.3f')} ± {frontier('PPO', 0.1, 'gold_spread', '.3f')} of "
        f"gold reward at {frontier('PPO', 0.1, 'kl', '.1f')} nats beside "
        f"{frontier(TRL, 0.1, 'gold', '.3f')} ± {frontier(TRL, 0.1, 'gold_spread', '.3f')} at "
        f"{frontier(TRL, 0.1, 'kl', '.1f')} of TRL's trainer",
        f"{frontier('PPO', 0.1, 'objective', '.2f')} ± "
        f"{frontier('PPO', 0.1, 'objective_spread', '.2f')} of the objective beside "
        f"{frontier(TRL, 0.1, 'objective', '.2f')} ± "
        f"{frontier(TRL, 0.1, 'objective_spread', '.2f')}.",
        f"{frontier(SEPARATE, 0.1, 'gold', '.3f')} ± "
        f"{frontier(SEPARATE, 0.1, 'gold_spread', '.3f')} at "
        f"{frontier(SEPARATE, 0.1, 'kl', '.1f')} nats, "
        f"{frontier(SEPARATE, 0.1, 'objective', '.2f')} ± "
        f"{frontier(SEPARATE, 0.1, 'objective_spread', '.2f')} of the objective",
        f"d* = {fit('peak', '.1f')}",
    ],
    "trpo_ppo/README.md": [
        f"moves the policy by {table1('no clipping or penalty', 'kl', '.0f')} nats in the mean and "
        f"by {table1('no clipping or penalty', 'kl_largest', '.0f')} at most",
        f"its largest update is {table1('clipping, eps = 0.2', 'kl_largest', '.2f')}.",
    ],
}


def test_figures_of_over_optimisation_are_the_record() -> None:
    record = json.loads((ROOT / "rlhf/results/runs/over-seed0.json").read_text())["records"]
    told = [(r["rewards/gold/mean"], r["objective/kl"]) for r in (record[20], record[-1])]
    (gold, kl), (last_gold, last_kl) = told
    said = (
        f"at {gold:.2f} after 20 rollouts, {kl:.0f} nats away, and at {last_gold:.2f} in the "
        f"last one, {last_kl:.0f} nats away"
    )
    assert said in " ".join((ROOT / "rlhf/README.md").read_text().split())


@pytest.mark.parametrize("readme", SAID)
def test_figures_in_sentences_are_the_results(readme: str) -> None:
    text = " ".join((ROOT / readme).read_text().split())
    assert [said for one in SAID[readme] if (said := with_quotes(one, ROOT)) not in text] == []
