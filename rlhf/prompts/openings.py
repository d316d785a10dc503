"""Openings of film reviews that say nothing good or bad yet, from a small grammar.

The prompts of the DPO paper (Rafailov et al. 2023, section 6) are the first words of IMDb reviews;
these are of the same kind, three to eight words long, and free of any word that VADER scores. In
``rlhf/data/openings.json``, slots of a template are parted by " | ", choices by "/".
"""

import json
import random
from functools import cache
from itertools import product
from pathlib import Path

PER_TEMPLATE = 160  # so that no template outweighs the others
_SEED = 6
_GRAMMAR = Path(__file__).parents[1] / "data" / "openings.json"


@cache
def openings() -> tuple[str, ...]:
    """Every opening once, in an order that is shuffled but always the same."""
    rng, grammar = random.Random(_SEED), json.loads(_GRAMMAR.read_text())
    unique: dict[str, None] = {}
    for template in grammar["templates"]:
        slots = [slot.format(**grammar["words"]).split("/") for slot in template.split(" | ")]
        texts = [" ".join(words) for words in product(*slots)]
        texts = [text for text in texts if 3 <= len(text.split()) <= 8]
        unique |= dict.fromkeys(rng.sample(texts, min(PER_TEMPLATE, len(texts))))
    return tuple(rng.sample(list(unique), len(unique)))
