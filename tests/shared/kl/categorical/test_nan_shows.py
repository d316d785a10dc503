"""A diverged model must not show a plausible divergence: NaN in, NaN out, for every function."""

import math

import pytest
import torch

import shared.kl
from shared.kl.categorical.divergences import SQUARED_HELLINGER

MORE = {"renyi": (3.0,), "alpha": (3.0,), "f_divergence": (SQUARED_HELLINGER,)}
ONE = {"entropy"}
OTHERS = {"mutual_information", "pointwise_kl"}  # of a joint; of each category, tested below
NAMES = [name for name in shared.kl.__all__ if name.endswith(("_from_logits", "_from_probs"))]


def spoilt(kind: str) -> dict[str, torch.Tensor]:
    """The same row sound, with one NaN, and of nothing else."""
    sound = torch.tensor([0.1, 0.2, 0.3, 0.4])
    row = sound.log() if kind == "logits" else sound
    one = row.clone()
    one[2] = math.nan
    return {"sound": row, "one": one, "all": row * math.nan}


@pytest.mark.parametrize("name", NAMES)
def test_nan_shows(name: str) -> None:
    stem, _, kind = name.rpartition("_from_")
    if stem in OTHERS:
        return
    rows = spoilt(kind)
    for first in rows:
        for second in rows:
            given = [rows[first]] if stem in ONE else [rows[first], rows[second]]
            value = getattr(shared.kl, name)(*given, *MORE.get(stem, ()))
            broken = first != "sound" or (second != "sound" and stem not in ONE)
            assert value.isnan().all() == broken, (first, second, value)


@pytest.mark.parametrize("kind", ["logits", "probs"])
def test_nan_shows_in_its_category_and_in_a_joint(kind: str) -> None:
    rows = spoilt(kind)
    pointwise = getattr(shared.kl, f"pointwise_kl_from_{kind}")(rows["sound"], rows["one"])
    assert pointwise[2].isnan()
    joint = torch.stack([rows["sound"], rows["one"]])
    assert getattr(shared.kl, f"mutual_information_from_{kind}")(joint).isnan()
