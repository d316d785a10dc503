"""Openings of film reviews that say nothing good or bad yet, from a small grammar.

The prompts of the DPO paper (Rafailov et al. 2023, section 6) are the first words of IMDb reviews;
these are of the same kind, three to eight words long, and free of any word that VADER scores.
"""

import random
from functools import cache
from itertools import product

PER_TEMPLATE = 160  # so that no template outweighs the others
_SEED = 6
_WORDS = {
    "film": "movie/film/documentary/western/drama/musical/sequel/remake",
    "kind": "French/Italian/Japanese/Korean/Canadian/British/Swedish/Indian/Spanish/German/Danish/"
    "Polish/Hollywood/independent/animated/silent/black-and-white/recent/two-hour/low-budget",
    "part": "acting/plot/script/story/ending/opening scene/soundtrack/dialogue/camera work/"
    "direction/editing/pacing/cast/main character/screenplay/first half/final scene/lead actor",
    "person": "brother/sister/mother/father/wife/husband/neighbor/cousin/roommate/son/daughter/"
    "uncle/aunt/teacher/boss",
    "time": "last night/on Sunday/yesterday/last week/on a plane/at home/on television/"
    "in a theater/last month/in the afternoon/last summer/with my family/on DVD/years ago",
    "maker": "director/writer/lead actor/lead actress/producer/composer/cinematographer/narrator/"
    "studio/editor",
    "subject": "a small town/two brothers/a train robbery/a family reunion/a space mission/"
    "an old painter/a road trip/a chess player/a lighthouse keeper/a taxi driver/three sisters/"
    "a village school/a jazz band/a hotel clerk/a boxer",
    "we saw": "I watched this/I saw this/We saw this/We watched this/I rented this",
    "seen": "When I first saw this/After watching this/By the end of this/Halfway through this/"
    "Having seen this/While watching this",
    "call": "I would describe this/I would call this/I remember this/People will see this/"
    "Reviewers described this/Audiences will remember this",
    "from": "Compared to the book, this/From the first scene this/From start to finish this/"
    "Unlike the trailer, this/After ten minutes this/Looking back, this/In my opinion, this/"
    "As a whole, this",
    "viewer": "the viewer/the audience/everyone/left me/you",
}
# A choice in each slot makes an opening, if it has three to eight words.
_TEMPLATES = """
The | {part} | of this/in this | {film} | is/was
{we saw} | {film} | {time} | and/and I/and we
This/That | {kind} | {film} | is/was/has/left me
My | {person} | and I thought this/said that this/told me this | {film} | was/is
The | {maker} | of this/behind this | {film} | has/is/made
{seen} | {film} | I felt/I was/we felt/we were
A/This | {film} | about | {subject} | that is/is/was
{call} | {film} | as/as a
{from} | {film} | is/was/felt
To me, the/For me, the/Once again, the | {part} | of this/in this | {film} | is/was
I think the/I thought the/We found the/I found the | {part} | in this/of this | {film}
This is a/It was a/This was a/It is a | {film} | that/which/where | {viewer}
"""


@cache
def openings() -> tuple[str, ...]:
    """Every opening once, in an order that is shuffled but always the same."""
    rng = random.Random(_SEED)
    unique: dict[str, None] = {}
    for template in _TEMPLATES.strip().splitlines():
        slots = [slot.format(**_WORDS).split("/") for slot in template.split(" | ")]
        texts = [" ".join(words) for words in product(*slots)]
        texts = [text for text in texts if 3 <= len(text.split()) <= 8]
        unique |= dict.fromkeys(rng.sample(texts, min(PER_TEMPLATE, len(texts))))
    return tuple(rng.sample(list(unique), len(unique)))
