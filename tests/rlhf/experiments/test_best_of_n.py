import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.experiments import best_of_n
from shared.errors import UserError
from tests import tiny
from tests.rlhf import made_up


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return made_up.place(tmp_path, monkeypatch)


def test_the_reference_is_sampled_and_scored(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_reward_model(there / "judge")

    def scores(seed: int, per_pass: int, gold: str = "vowels") -> dict[str, Any]:
        monkeypatch.setattr(best_of_n, "PER_PASS", per_pass)
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "x",
                "--reward",
                "judge",
                "--gold",
                f"tests.rlhf.made_up:{gold}",
                "--count",
                "3",
                "--samples",
                "5",
                "--completion",
                "6",
                "--seed",
                str(seed),
                "--out",
                "out",
            ],
        )
        best_of_n.main()
        found: dict[str, Any] = json.loads(Path("out/summary.json").read_text())
        del found["seconds"]
        return found

    found = scores(0, 64)
    proxy, gold = torch.tensor(found["proxy"]), torch.tensor(found["gold"])
    assert proxy.shape == gold.shape == (3, 5)
    assert len(found["prompts"]) == 3
    assert all(len(row.unique()) > 1 for row in proxy)  # each sample has its own random numbers
    assert 0 < gold.max() < 1
    in_parts = scores(0, 4)
    torch.testing.assert_close(torch.tensor(in_parts["proxy"]), proxy)
    assert in_parts["gold"] == found["gold"]
    assert scores(1, 64)["proxy"] != found["proxy"]
    lengths = [[float(len(prompt))] * 5 for prompt in found["prompts"]]
    assert lengths[0] != lengths[1]
    assert scores(0, 4, "letters")["gold"] == lengths  # a row has the samples of its prompt


def test_without_a_gold_reward(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--gold", "", "--out", "out"])
    with pytest.raises(UserError, match=r"^--gold: name one"):
        best_of_n.main()
    assert not (there / "out").exists()
